"""Training state on disk, by Orbax (v1): whole or not at all, the last N kept.

A checkpoint holds what training changes: trainable parameters, optimizer state and the step; the
order of the data follows from the step. Frozen parameters are read again from where they came
from, and their digest is compared.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from sammi_jax.errors import SammiError
from sammi_jax.state import TrainState


def digest(params: Mapping[str, Any]) -> str:
    """SHA-256 over paths and values."""
    total = hashlib.sha256()
    for path in sorted(params):
        total.update(path.encode())
        total.update(np.ascontiguousarray(jax.device_get(params[path])).tobytes())
    return total.hexdigest()


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints``."""

    def __init__(self, workdir: Path, keep: int):
        self._directory = workdir.absolute() / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory),
            preservation_policy=cast(Any, ocp.training.preservation_policies.LatestN(keep)),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Steps done at the newest checkpoint; None where there is none."""
        return None if self._checkpointer.latest is None else self._checkpointer.latest.step

    def save(self, state: TrainState, frozen_digest: str) -> None:
        """Write the state after ``state.step`` steps; it is complete when this returns."""
        self._checkpointer.save(
            int(state.step), _saved(state), force=True, custom_metadata={"frozen": frozen_digest}
        )

    def restore(self, state: TrainState, frozen_digest: str) -> TrainState:
        """The newest checkpoint, with shapes, shardings and frozen parameters of ``state``.

        Raises:
            SammiError: its parameters or its frozen weights are others than those of ``state``.
        """
        where = self._directory / str(self.latest_step)
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), _saved(state)
        )
        found = self._checkpointer.metadata(self.latest_step)
        _check_shapes(found.metadata, abstract, where)
        if found.custom_metadata != {"frozen": frozen_digest}:
            raise SammiError(
                f"{where}: was trained with other frozen weights than the config names"
            )
        saved = self._checkpointer.load(self.latest_step, abstract)
        leaves = [saved["opt_state"][name] for name in _named(state.opt_state)]
        opt_state = jax.tree.unflatten(jax.tree.structure(state.opt_state), leaves)
        return replace(state, step=saved["step"], trainable=saved["trainable"], opt_state=opt_state)

    def close(self) -> None:
        """Wait for what is being written and release Orbax's threads."""
        self._checkpointer.close()


def _check_shapes(found: Any, expected: Any, where: Path) -> None:
    """Compare before loading: Orbax's own message on a mismatch is pages long."""
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
