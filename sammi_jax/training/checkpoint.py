"""Training state on disk, by Orbax (v1), written in the background and atomically.

The last few checkpoints and the best one are kept. A checkpoint holds what training changes:
trainable parameters, optimizer state and the step; the order of the data follows from the step.
Frozen parameters are read again from their source, and their digest is compared.
"""

import hashlib
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sammi_jax.errors import SammiError, one_line
from sammi_jax.files import write_errors
from sammi_jax.object_store import AnyPath, absolute, access_problem, is_bucket, move, remove
from sammi_jax.parallel.batch import fetch
from sammi_jax.parallel.job import anywhere
from sammi_jax.training.state import TrainState

CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "checkpoints-damaged"
SCORE = "miou"  # of the numbers saved with a checkpoint, the one that says which is the best
# What Orbax and tensorstore raise where files are truncated or missing, but not where a device is
# out of memory.
_UNREADABLE = (ValueError, KeyError, OSError)


def quiet_orbax() -> None:
    """Let Orbax not log each of its steps, nor with a traceback what it raises as well."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def hook(found: Any) -> None:
        # tensorstore tells Orbax's event loop of a failed read after Orbax has closed it
        if "Event loop is closed" not in str(found.exc_value):
            show(found)

    sys.unraisablehook = hook


def check_workdir(workdir: AnyPath) -> None:
    """Check that checkpoints can be written to a work folder, before anything is made.

    Raises:
        SammiError: it is in a bucket of Amazon's S3, which Orbax cannot write to.
    """
    if is_bucket(workdir) and str(workdir).startswith("s3://"):
        raise SammiError(
            f"{workdir}: checkpoints cannot be written to s3:// (Orbax has no driver for it); give "
            "gs://BUCKET/PATH, a folder of this machine, or a mounted bucket"
        )


def checkpoint_steps(workdir: AnyPath) -> list[int]:
    """Steps of the complete checkpoints in a work folder, ascending."""
    folder = workdir / CHECKPOINTS_FOLDER
    if is_bucket(folder):  # there is no rename: Orbax writes this object last
        found = (path.parent for path in folder.glob("*/commit_success.txt"))
    else:
        found = folder.glob("*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def read_trained(
    workdir: AnyPath, step: int, trainable: Mapping[str, jax.ShapeDtypeStruct], frozen_digest: str
) -> dict[str, Any]:
    """The trainable parameters of one checkpoint; the run may be in progress.

    Args:
        workdir: of the run.
        step: of the checkpoint.
        trainable: their shapes by path.
        frozen_digest: of the frozen parameters.

    Raises:
        SammiError: no such checkpoint, or one that is damaged or of another model.
    """
    where = workdir / CHECKPOINTS_FOLDER / str(step)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        found = _read_metadata(where)
        _check_shapes(found.metadata["trainable"], dict(trainable), where)
        _check_frozen(found, frozen_digest, where)
        with context:
            return cast(Any, ocp.load(str(where), {"trainable": dict(trainable)}))["trainable"]
    except (_DamagedError, *_UNREADABLE) as error:
        _raise_if_unreachable(where, error)
        raise SammiError(f"{where}: damaged ({one_line(error)}); name another step") from error


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 over paths and values."""
    total = hashlib.sha256()
    for path in sorted(params):
        total.update(path.encode())
        total.update(np.ascontiguousarray(fetch(params[path])).tobytes())
    return total.hexdigest()


class _DamagedError(Exception):
    """A checkpoint that cannot be read back."""


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints``.

    Args:
        workdir: of the run.
        keep: how many of the latest checkpoints stay; the best one is kept as well.
        frozen: the frozen parameters by path.

    Raises:
        SammiError: there are checkpoints, and every one is damaged.
    """

    def __init__(self, workdir: AnyPath, keep: int, frozen: Mapping[str, Any]):
        self._directory = absolute(workdir) / CHECKPOINTS_FOLDER
        self._frozen_digest = digest(frozen)
        self._screen()
        self._saving: int | None = None  # the step that is written in the background
        with write_errors(self._directory):
            self._checkpointer = ocp.training.Checkpointer(
                str(self._directory),
                preservation_policy=cast(Any, _keep(keep)),
                cleanup_tmp_directories=True,
            )

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest checkpoint; None where there is none."""
        return None if self._checkpointer.latest is None else self._checkpointer.latest.step

    def save(self, state: TrainState, scores: Mapping[str, float] | None) -> None:
        """Begin to write the state in the background, once the save before is complete.

        The arrays may be donated as soon as this returns.

        Args:
            state: what to write.
            scores: numbers of its evaluation, `SCORE` among them; None: it was not evaluated.

        Raises:
            SammiError: the save before this one failed.
        """
        self.wait()
        step = int(state.step)
        if step == self.latest_step:
            return
        self._saving = step
        with self._save_errors():
            self._checkpointer.save_async(
                step,
                _saved(state),
                force=True,
                metrics=None if scores is None else dict(scores),
                custom_metadata={"frozen": self._frozen_digest},
            )

    def wait(self) -> None:
        """Return once the last save is complete on disk.

        Raises:
            SammiError: it could not be written.
        """
        with self._save_errors():
            self._checkpointer.wait()
        self._saving = None

    @contextmanager
    def _save_errors(self) -> Iterator[None]:
        """What keeps a save from its end, as one line."""
        where = self._directory / str(self._saving)
        try:
            with write_errors(where):
                yield
        except _UNREADABLE as error:
            _raise_if_unreachable(where, error)
            reason = one_line(error)
            if isinstance(error, TimeoutError):  # Orbax reads the time of day: 10 minutes and more
                reason = "the disk did not answer for minutes, or the clock was set forward"
            raise SammiError(
                f"{where}: could not be written ({reason}); the same command resumes from the "
                "checkpoint before it"
            ) from error

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint that can be read, with shapes and shardings of ``state``.

        A damaged one is skipped with a warning, and moved to another folder: its step will be saved
        again. Where there is no checkpoint, ``state`` itself.

        Raises:
            SammiError: every checkpoint is damaged, or its parameters or its frozen weights are
                others than those of ``state``.
        """
        steps = [found.step for found in reversed(self._checkpointer.checkpoints)]
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                restored = self._load(step, state)
            except _DamagedError as error:
                restored, damaged[step] = None, str(error)
            if anywhere(restored is None):
                damaged.setdefault(step, "another process could not read it")
                continue
            assert restored is not None
            if damaged:
                self._skip(damaged)
                self._checkpointer.reload()
            return restored
        if steps:
            raise self._all_damaged(steps)
        return state

    def best(self, state: TrainState) -> TrainState | None:
        """The checkpoint with the best score, as `restore` gives it; None where none has a score.

        Raises:
            SammiError: it is damaged, or of another model.
        """
        scored = [found for found in self._checkpointer.checkpoints if found.metrics]
        if not scored:
            return None
        step = max(scored, key=lambda found: (_score(found.metrics), found.step)).step
        try:
            return self._load(step, state)
        except _DamagedError as error:
            raise SammiError(
                f"{self._directory / str(step)}: the best checkpoint is damaged ({error}); delete "
                "it, and the same command exports the next best"
            ) from error

    def _load(self, step: int, state: TrainState) -> TrainState:
        where = self._directory / str(step)
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _saved(state)
        )
        found = _read_metadata(where)
        _check_shapes(found.metadata, abstract, where)
        _check_frozen(found, self._frozen_digest, where)
        try:
            saved = self._checkpointer.load(step, abstract)
        except _UNREADABLE as error:
            _raise_if_unreachable(self._directory / str(step), error)
            raise _DamagedError(one_line(error)) from error
        leaves = [saved["opt_state"][name] for name in _named(state.opt_state)]
        opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
        return replace(state, step=saved["step"], trainable=saved["trainable"], opt_state=opt_state)

    def _screen(self) -> None:
        """Move checkpoints without readable metadata away: Orbax cannot start with some of them."""
        steps = checkpoint_steps(self._directory.parent)
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                _read_metadata(self._directory / str(step))
            except _DamagedError as error:
                damaged[step] = str(error)
        if damaged and len(damaged) == len(steps):
            raise self._all_damaged(steps)
        self._skip(damaged)

    def _skip(self, damaged: dict[int, str]) -> None:
        """Warn, and move checkpoints to where they do not count among those to keep."""
        multihost_utils.sync_global_devices("every process has read the checkpoints")
        folder = self._directory.with_name(DAMAGED_FOLDER)
        for step, reason in damaged.items():
            warnings.warn(
                f"{self._directory / str(step)}: damaged ({reason}); it was moved to "
                f"{folder}, and the one before it is used",
                stacklevel=4,
            )
            if jax.process_index() == 0:
                _move(self._directory / str(step), folder / str(step))
        multihost_utils.sync_global_devices("damaged checkpoints are moved")

    def _all_damaged(self, steps: list[int]) -> SammiError:
        return SammiError(
            f"{self._directory}: every checkpoint is damaged (steps "
            f"{', '.join(map(str, sorted(steps)))}); restore one from a copy, or delete the "
            "folder to start again"
        )

    def close(self) -> None:
        """Wait until the last save is complete, and end Orbax's threads."""
        self._checkpointer.close()


def _move(folder: AnyPath, target: AnyPath) -> None:
    """Move a folder to where another one may be, which is replaced."""
    if is_bucket(folder):
        remove(target)
        move(folder, target)
        return
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _raise_if_unreachable(where: AnyPath, error: Exception) -> None:
    """Raise where a bucket cannot be used now: the checkpoint is not damaged."""
    problem = access_problem(error) if is_bucket(where) else None
    if problem is not None:
        raise SammiError(f"{where}: {problem}") from error


def _score(metrics: Any) -> float:
    return float(metrics[SCORE])


def _keep(latest: int) -> Any:
    policies = ocp.training.preservation_policies
    best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
    return policies.AnyPreservationPolicy([policies.LatestN(latest), best])


def _read_metadata(where: AnyPath) -> Any:
    """Orbax's metadata of a checkpoint; of a damaged one it lacks parts, or cannot be read."""
    try:
        found = ocp.metadata(str(where))
    except _UNREADABLE as error:
        _raise_if_unreachable(where, error)
        raise _DamagedError(one_line(error)) from error
    if not found.metadata or not found.custom_metadata:
        raise _DamagedError("its metadata is incomplete")
    return found


def _check_frozen(found: Any, frozen_digest: str, where: AnyPath) -> None:
    if found.custom_metadata != {"frozen": frozen_digest}:
        raise SammiError(f"{where}: was trained with other frozen weights than the configuration's")


def _check_shapes(found: Any, expected: Any, where: AnyPath) -> None:
    """Compare shapes before loading: Orbax's own message on a mismatch is pages long."""
    old = {name: tuple(leaf.shape) for name, leaf in _named(found).items()}
    new = {name: tuple(leaf.shape) for name, leaf in _named(expected).items()}
    wrong = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if wrong:
        raise SammiError(
            f"{where}: {wrong[0]} is {old.get(wrong[0])}, the model's is {new.get(wrong[0])} "
            f"({len(wrong)} differ)"
        )


def _saved(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "trainable": dict(state.trainable),
        "opt_state": _named(state.opt_state),
    }


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
