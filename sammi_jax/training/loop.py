"""The training loop: new or resumed state, steps, log, checkpoints, and the model at the end.

Order within a step: train, look at the losses so far, log, evaluate, save; a state that may be bad
is never saved. docs/training.md says what a run does when it is stopped.
"""

from pathlib import Path

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.config.files import save_config
from sammi_jax.data.input.loader import prefetch
from sammi_jax.errors import SammiError
from sammi_jax.figures import draw_curves
from sammi_jax.parallel.batch import Batch, check_batch_size, fetch, put_batch
from sammi_jax.parallel.job import PreemptedError, Preemption, anywhere
from sammi_jax.parallel.mesh import make_mesh, replicated
from sammi_jax.training.checkpoint import Checkpoints, digest
from sammi_jax.training.flops import count_flops
from sammi_jax.training.guard import Guard
from sammi_jax.training.metrics_log import LOG_FILE, Log, rate_factors, read_log
from sammi_jax.training.optim import make_optimizer, make_schedule
from sammi_jax.training.profile import Profile
from sammi_jax.training.state import (
    Metrics,
    Step,
    TrainState,
    describe,
    make_loss,
    make_train_step,
    new_state,
    trainable_paths,
)
from sammi_jax.training.task import Rules, Task
from sammi_jax.training.validation import Validation

MODEL_FOLDER, BEST_FOLDER = "model", "best"
CURVES_FILE = "curves.png"


def train(task: Task, config: TrainConfig, workdir: Path) -> Path:
    """Train to ``config.steps``, resuming where ``workdir`` holds checkpoints.

    Returns:
        The model folder that was written, ``workdir/model``; with ``config.validation`` the best
        one is ``workdir/best``.

    Raises:
        SammiError: the experiment does not fit the devices or the folder, every checkpoint is
            damaged, or the loss exploded.
        PreemptedError: SIGTERM came; the state is saved.
    """
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    schedule = make_schedule(config.optim, config.steps)
    _claim(workdir, config)
    with Preemption() as preemption:
        checkpoints = Checkpoints(workdir, config.keep)
        finished = checkpoints.latest_step == config.steps
        try:
            with jax.set_mesh(mesh):
                validation = Validation(task, config, mesh, workdir)
                run = _Run(
                    task, config, schedule, mesh, workdir, checkpoints, validation, preemption
                )
                last, best = run.last(), run.best()
        finally:
            checkpoints.close()  # whatever ends the run, what is being saved is completed
        if jax.process_index() == 0 and not finished:
            draw_curves(read_log(workdir / LOG_FILE), workdir / CURVES_FILE)
        for name, state in ((MODEL_FOLDER, last), (BEST_FOLDER, best)):
            if state is not None:
                _export(task, state, workdir / name, keep=finished)
        multihost_utils.sync_global_devices("the models are written")
    return workdir / MODEL_FOLDER


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


def _export(task: Task, state: TrainState, folder: Path, *, keep: bool) -> None:
    """Write a model folder; ``keep``: not where there is one."""
    params = {path: fetch(value) for path, value in state.params.items()}
    if jax.process_index() == 0 and not (keep and folder.exists()):
        task.export(params, folder, int(state.step))


class _Run:
    """One run of training: the state, the step, and everything around it."""

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        schedule: optax.Schedule,
        mesh: Mesh,
        workdir: Path,
        checkpoints: Checkpoints,
        validation: Validation,
        preemption: Preemption,
    ):
        self._task, self._config, self._mesh, self._workdir = task, config, mesh, workdir
        self._checkpoints, self._validation = checkpoints, validation
        self._schedule, self._preemption = schedule, preemption
        trainable = trainable_paths(task)
        self._scales = {path: task.lr_scale(path) for path in trainable}
        self._optimizer = make_optimizer(config.optim, self._schedule, self._scales)
        state = new_state(task, trainable, self._optimizer, config.seed, mesh)
        self._frozen_digest = digest(state.frozen)
        self._state = checkpoints.restore(state, self._frozen_digest)

    def last(self) -> TrainState:
        """The state after the last step; everything is saved."""
        log = Log(
            self._workdir,
            int(self._state.step),
            self._config,
            rate_factors(self._config.optim, self._scales),
        )
        try:
            log.say(describe(self._state))
            self._steps(log)
        finally:
            log.close()
        self._checkpoints.wait()
        return self._state

    def best(self) -> TrainState | None:
        """The state with the best validation; None where there was none."""
        if not self._config.validation:
            return None
        return self._checkpoints.best(self._state, self._frozen_digest)

    def _step(self, task: Rules) -> Step:
        loss = make_loss(task, self._config.compute_dtype)
        config = self._config
        return make_train_step(
            loss, self._optimizer, self._schedule, config.seed, config.accumulate
        )

    def _compile(self, batch: Batch, log: Log) -> Step:
        """The step for arguments of these shapes and shardings.

        Compiled by hand: called as it is, jit compiles again for its own output.
        """
        if log.wants_flops:
            log.flops = count_flops(self._step(self._task.without_remat()), self._state, batch)
        shardings = jax.tree.map(lambda array: array.sharding, self._state)
        # The frozen part passes through: donating it too lets XLA alias it instead of copying it.
        jitted = jax.jit(
            self._step(self._task),
            donate_argnums=0,
            out_shardings=(shardings, replicated(self._mesh)),
        )
        return jitted.lower(self._state, batch).compile()

    def _steps(self, log: Log) -> None:
        config, start = self._config, int(self._state.step)
        program: Step | None = None
        guard, profile = Guard(config), Profile(self._workdir / "profile", config.profile_steps)
        made = self._task.batches(start)
        batches = prefetch(lambda _: put_batch(next(made), self._mesh), range(start, config.steps))
        try:
            for number, batch in enumerate(log.waiting(batches), start + 1):
                profile.before(number)
                program = program or self._compile(batch, log)
                self._state, metrics = program(self._state, batch)
                profile.after(number, metrics)
                guard.add(number, metrics)
                self._after(number, metrics, guard, log, first=number == start + 1)
        finally:
            profile.close()
            batches.close()
            made.close()

    def _after(self, number: int, metrics: Metrics, guard: Guard, log: Log, *, first: bool) -> None:
        """What is due after a step: log, evaluation, checkpoint, the end that was asked for."""
        config = self._config
        last = number == config.steps
        stop = self._preemption.reached(number) and not last
        saved = number % config.checkpoint_every == 0 or last or stop
        if not (saved or first or number % config.log_every == 0):
            return
        guard.check()
        log.write(number, jax.device_get(metrics))
        if saved:
            scores = None
            if self._validation.due(number) and not stop:
                scores = self._validation(self._state.params, number)
                log.add(number, scores)
            self._checkpoints.save(self._state, self._frozen_digest, scores)
        if stop:
            raise PreemptedError(
                f"asked to end (SIGTERM) after step {number} of {config.steps}; the state is "
                "saved, and the same command goes on from there"
            )
