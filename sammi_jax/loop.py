"""The training loop: new or resumed state, steps, log, checkpoints, and the model at the end.

Order within a step: train, look at the losses so far, log, save; a state that may be bad is never
saved. docs/training.md says what a run does when it is stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sammi_jax.checkpoint import Checkpoints, digest
from sammi_jax.curves import draw_curves
from sammi_jax.data.loader import Batch, prefetch
from sammi_jax.distributed import PreemptedError, Preemption, anywhere
from sammi_jax.errors import SammiError
from sammi_jax.experiment import TrainConfig, save_config
from sammi_jax.optim import make_optimizer, make_schedule
from sammi_jax.parallel import (
    check_batch_size,
    fetch,
    fsdp_sharding,
    make_mesh,
    put_batch,
    replicated,
)
from sammi_jax.params import build
from sammi_jax.state import Metrics, TrainState, make_train_step
from sammi_jax.tasks.base import Rules, Task
from sammi_jax.watch import LOG_FILE, Guard, Log, Profile, rate_factors, read_log

MODEL_FOLDER = "model"
CURVES_FILE = "loss.png"


def train(task: Task, config: TrainConfig, workdir: Path) -> Path:
    """Train to ``config.steps``, resuming where ``workdir`` holds checkpoints.

    Returns:
        The model folder that was written, ``workdir/model``.

    Raises:
        SammiError: the experiment does not fit the devices or the folder, every checkpoint is
            damaged, or the loss exploded.
        PreemptedError: SIGTERM came; the state is saved.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh)
    _claim(workdir, config)
    with Preemption() as preemption:
        checkpoints = Checkpoints(workdir, config.keep)
        finished = checkpoints.latest_step == config.steps
        try:
            with jax.set_mesh(mesh):
                state = _train(task, config, mesh, checkpoints, preemption, workdir)
        finally:
            checkpoints.close()  # whatever ends the run, what is being saved is completed
        folder = workdir / MODEL_FOLDER
        params = {path: fetch(value) for path, value in state.params.items()}
        if jax.process_index() == 0 and not (finished and folder.exists()):
            draw_curves(read_log(workdir / LOG_FILE), workdir / CURVES_FILE)
            task.export(params, folder)
        multihost_utils.sync_global_devices("the model is written")
    return folder


def _claim(workdir: Path, config: TrainConfig) -> None:
    """Process 0 writes or compares the folder's configuration, and all hear of its refusal."""
    refusal = None
    if jax.process_index() == 0:
        try:
            save_config(config, workdir)
        except SammiError as error:
            refusal = error
    if anywhere(refusal is not None):
        raise refusal or SammiError(f"{workdir}: refused by process 0, whose message says why")


def _train(
    task: Task,
    config: TrainConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    preemption: Preemption,
    workdir: Path,
) -> TrainState:
    schedule = make_schedule(config.optim, config.steps)
    trainable = trainable_paths(task)
    scales = {path: task.lr_scale(path) for path in trainable}
    optimizer = make_optimizer(config.optim, schedule, scales)
    state = new_state(task, trainable, optimizer, config.seed, mesh)
    frozen_digest = digest(state.frozen)
    state = checkpoints.restore(state, frozen_digest)
    step = make_train_step(make_loss(task, config.compute_dtype), optimizer, schedule, config.seed)
    log = Log(workdir, int(state.step), config, rate_factors(config.optim, scales))
    save = lambda state: checkpoints.save(state, frozen_digest)  # noqa: E731
    try:
        state = _run(task, config, mesh, state, step, log, save, preemption, workdir)
    finally:
        log.close()
    checkpoints.wait()
    return state


def trainable_paths(task: Rules) -> list[str]:
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


def make_loss(rules: Rules, dtype: str) -> Any:
    """``f(params, batch, key)``: the loss of the model that is built from ``params``."""

    def loss(params: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
        return rules.loss(build(lambda: rules.make(nnx.Rngs(0)), params, dtype), batch, key)

    return loss


def _run(
    task: Task,
    config: TrainConfig,
    mesh: Mesh,
    state: TrainState,
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    log: Log,
    save: Callable[[TrainState], None],
    preemption: Preemption,
    workdir: Path,
) -> TrainState:
    start = int(state.step)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    # The frozen part passes through: donating it too lets XLA alias it instead of copying it.
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    program = None  # compiled by hand: called as it is, jit compiles again for its own output
    guard, profile = Guard(config), Profile(workdir / "profile", config.profile_steps)
    made = task.batches(start)
    batches = prefetch(lambda _: put_batch(next(made), mesh), range(start, config.steps))
    try:
        for number, batch in enumerate(batches, start + 1):
            profile.before(number)
            program = program or jitted.lower(state, batch).compile()
            state, metrics = program(state, batch)
            profile.after(number, metrics)
            guard.add(number, metrics)
            last = number == config.steps
            stop = preemption.reached(number) and not last
            saved = number % config.checkpoint_every == 0 or last or stop
            logged = number == start + 1 or number % config.log_every == 0 or last or stop
            if saved or logged:
                guard.check()
            if logged:
                log.write(number, jax.device_get(metrics))
            if saved:
                save(state)
            if stop:
                raise PreemptedError(
                    f"asked to end (SIGTERM) after step {number} of {config.steps}; the state is "
                    "saved, and the same command goes on from there"
                )
    finally:
        profile.close()
        batches.close()
        made.close()
    return state
