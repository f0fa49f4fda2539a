"""The training loop: new or resumed state, steps, log, checkpoints, and the model at the end.

Order within a step: train, log, save. The log has one JSON line per record.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from sammi_jax.checkpoint import Checkpoints, digest
from sammi_jax.data.loader import Batch, prefetch
from sammi_jax.errors import SammiError
from sammi_jax.experiment import TrainConfig, save_config
from sammi_jax.optim import make_optimizer, make_schedule
from sammi_jax.parallel import check_batch_size, fsdp_sharding, make_mesh, put_batch, replicated
from sammi_jax.params import build
from sammi_jax.state import Metrics, TrainState, make_train_step
from sammi_jax.tasks.base import Task

MODEL_FOLDER = "model"


def train(task: Task, config: TrainConfig, workdir: Path) -> Path:
    """Train to ``config.steps``, resuming where ``workdir`` holds checkpoints.

    Returns:
        The model folder that was written, ``workdir/model``.

    Raises:
        SammiError: the experiment does not fit the devices or the folder, or the loss exploded.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    save_config(config, workdir)
    schedule = make_schedule(config.optim, config.steps)
    trainable = trainable_paths(task)
    scales = {path: task.lr_scale(path) for path in trainable}
    optimizer = make_optimizer(config.optim, schedule, scales)
    checkpoints = Checkpoints(workdir, config.keep)
    try:
        with jax.set_mesh(mesh):
            state = new_state(task, trainable, optimizer, config.seed, mesh)
            frozen_digest = digest(state.frozen)
            if checkpoints.latest_step is not None:
                state = checkpoints.restore(state, frozen_digest)
            step = make_train_step(_loss(task), optimizer, schedule, config.seed)
            save = lambda state: checkpoints.save(state, frozen_digest)  # noqa: E731
            state = _run(task, config, mesh, state, step, save, workdir)
    finally:
        checkpoints.close()
    folder = workdir / MODEL_FOLDER
    task.export(jax.device_get(state.params), folder)
    return folder


def trainable_paths(task: Task) -> list[str]:
    """Paths of the parameters that train, in the model's order."""
    abstract = nnx.eval_shape(lambda: task.make(nnx.Rngs(0)))
    paths = [
        "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    ]
    chosen = [path for path in paths if task.is_trainable(path)]
    if not chosen:
        raise SammiError("nothing trains: the task leaves no parameter trainable")
    return chosen


def new_state(
    task: Task,
    trainable: list[str],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
) -> TrainState:
    """The state at step 0, placed on the mesh."""
    params = task.initial_params(seed)
    params = jax.device_put(params, fsdp_sharding(params, mesh))
    chosen = {path: params[path] for path in trainable}
    frozen = {path: value for path, value in params.items() if path not in chosen}
    shardings = fsdp_sharding(jax.eval_shape(optimizer.init, chosen), mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(chosen)
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh))
    return TrainState(step, chosen, frozen, opt_state)


def _loss(task: Task) -> Any:
    def loss(params: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
        return task.loss(build(lambda: task.make(nnx.Rngs(0)), params), batch, key)

    return loss


def _run(
    task: Task,
    config: TrainConfig,
    mesh: Mesh,
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    save: Callable[[TrainState], None],
    workdir: Path,
) -> TrainState:
    start = int(state.step)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    # The frozen part passes through: donating it too lets XLA alias it instead of copying it.
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    log = Log(workdir / "log.jsonl", start, config)
    made = task.batches(start)
    batches = prefetch(lambda _: put_batch(next(made), mesh), range(start, config.steps))
    try:
        for number, batch in enumerate(batches, start + 1):
            state, metrics = step(state, batch)
            last = number == config.steps
            if number == start + 1 or number % config.log_every == 0 or last:
                log.write(number, jax.device_get(metrics))
            if number % config.checkpoint_every == 0 or last:
                save(state)
    finally:
        batches.close()
        made.close()
        log.close()
    return state


class Log:
    """Progress bar and ``log.jsonl``; records beyond the step that a run resumes from go."""

    def __init__(self, file: Path, start: int, config: TrainConfig):
        kept = file.read_text().splitlines() if file.is_file() else []
        kept = [line for line in kept if json.loads(line)["step"] <= start]
        file.write_text("".join(line + "\n" for line in kept))
        self._file = file.open("a")
        self._batch_size = config.batch_size
        self._bar = tqdm(
            total=config.steps,
            initial=start,
            desc=config.task.kind,
            unit="step",
            dynamic_ncols=True,
        )
        self._step, self._time = start, time.perf_counter()

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of a step.

        Raises:
            SammiError: the loss or the gradient is not finite.
        """
        now = time.perf_counter()
        values = {name: float(value) for name, value in metrics.items() if name != "finite"}
        rate = (step - self._step) * self._batch_size / (now - self._time)
        record = {"step": step, **values, "images_per_s": rate}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._bar.set_postfix_str(f"loss {values['loss']:.4g}, {rate:.0f} images/s", refresh=False)
        self._bar.update(step - self._step)
        self._step, self._time = step, now
        if not metrics["finite"]:
            raise SammiError(f"step {step}: the loss is not finite; lower optim.peak_lr")

    def close(self) -> None:
        """Close the bar and the file."""
        self._bar.close()
        self._file.close()
