"""The training loop: new or resumed state, steps, log, checkpoints, and the model at the end.

Within a step the order is: train, check the losses so far, log, evaluate, save; so a state with a
bad loss is never saved. docs/training.md says what happens to a run that is stopped.
"""

from collections.abc import Generator, Mapping
from contextlib import closing
from itertools import islice
from typing import Any

import jax
from jax.experimental import multihost_utils

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.data.input.prefetch import prefetch
from sammi_jax.figures import draw_curves
from sammi_jax.files import is_complete
from sammi_jax.object_store import AnyPath
from sammi_jax.parallel.batch import Batch, check_batch_size, fetch, put_batch
from sammi_jax.parallel.job import Preemption
from sammi_jax.parallel.mesh import make_mesh, replicated
from sammi_jax.parallel.run import PreemptedError
from sammi_jax.training.checkpoint import Checkpoints, check_workdir
from sammi_jax.training.claim import claimed
from sammi_jax.training.flops import count_flops
from sammi_jax.training.goodput import Startup
from sammi_jax.training.guard import Guard
from sammi_jax.training.metrics_log import LOG_FILE, Log, read_log
from sammi_jax.training.optim import make_optimizer
from sammi_jax.training.profile import Profile
from sammi_jax.training.state import (
    Metrics,
    Params,
    Step,
    TrainState,
    describe,
    held_params,
    make_loss,
    make_train_step,
    new_state,
    trainable_paths,
)
from sammi_jax.training.task import Rules, Task
from sammi_jax.training.validation import Validation

MODEL_FOLDER, BEST_FOLDER = "model", "best"
CURVES_FILE = "curves.png"


def train(task: Task, config: TrainConfig, workdir: AnyPath, age: float = 0.0) -> AnyPath:
    """Train to ``config.steps``, resuming where ``workdir`` holds checkpoints.

    Args:
        task: what is trained.
        config: the experiment.
        workdir: for checkpoints, log and models.
        age: seconds that this process has run already, for the log.

    Returns:
        The model folder that was written, ``workdir/model``; with ``config.validation`` the best
        one is ``workdir/best``.

    Raises:
        SammiError: the experiment does not fit the devices or the folder, every checkpoint is
            damaged, or the loss exploded.
        PreemptedError: SIGTERM or a Ctrl-C came; the state is saved.
    """
    check_workdir(workdir)
    with closing(Startup(age)) as startup:
        startup.mark("import")
        return _train(task, config, workdir, startup)


def _train(task: Task, config: TrainConfig, workdir: AnyPath, startup: Startup) -> AnyPath:
    run = _Run(task, config, workdir, startup)
    with claimed(workdir, config, task), jax.set_mesh(run.mesh), Preemption() as preemption:
        startup.mark("devices")
        validation = Validation(task, config, run.mesh, workdir)
        state = run.new_state()
        startup.mark("model")
        with closing(Checkpoints(workdir, config.keep, run.frozen(state))) as checkpoints:
            finished = checkpoints.latest_step == config.steps
            restored = checkpoints.restore(state)
            startup.mark("restore")
            last = run.to_end(restored, validation, checkpoints, preemption)
            best = checkpoints.best(last) if config.validation else None
        if jax.process_index() == 0 and not finished:
            draw_curves(read_log(workdir / LOG_FILE), workdir / CURVES_FILE)
        for name, state in ((MODEL_FOLDER, last), (BEST_FOLDER, best)):
            if state is not None:
                params = {**run.frozen(state), **state.trainable}
                _export(task, params, int(state.step), workdir / name, keep=finished)
        multihost_utils.sync_global_devices("the models are written")
    return workdir / MODEL_FOLDER


def _export(
    task: Task, params: Mapping[str, Any], step: int, folder: AnyPath, *, keep: bool
) -> None:
    """Write a model folder; with ``keep`` only where there is none."""
    params = {path: fetch(value) for path, value in params.items()}
    if jax.process_index() == 0 and not (keep and is_complete(folder)):
        task.export(params, folder, step)


class _Run:
    """One run of training.

    Attributes:
        mesh: the devices.
    """

    def __init__(self, task: Task, config: TrainConfig, workdir: AnyPath, startup: Startup):
        self._task, self._config, self._workdir = task, config, workdir
        self._startup = startup
        self._rounded: Params = {}  # frozen parameters of which the state holds rounded ones
        self.mesh = make_mesh(config.mesh)
        check_batch_size(config.batch_size, self.mesh, config.accumulate)
        self._lr_scales = {path: task.lr_scale(path) for path in trainable_paths(task)}
        self._optimizer = make_optimizer(config.optim, config.steps, self._lr_scales)

    def new_state(self) -> TrainState:
        """The state at step 0."""
        params = self._task.initial_params(self._config.seed)
        held = held_params(self._task, params, self._config.compute_dtype)
        self._rounded = {path: x for path, x in params.items() if held[path].dtype != x.dtype}
        return new_state(held, self._lr_scales, self._optimizer, self.mesh)

    def frozen(self, state: TrainState) -> Params:
        """The frozen parameters as they were read."""
        return {**state.frozen, **self._rounded}

    def to_end(
        self,
        state: TrainState,
        validation: Validation,
        checkpoints: Checkpoints,
        preemption: Preemption,
    ) -> TrainState:
        """Train and save; the state after the last step, once all is saved."""
        config, start, guard = self._config, int(state.step), Guard(self._config)
        with (
            closing(Log(self._workdir, start, config, self._lr_scales, self._startup)) as log,
            closing(self._steps(state, log)) as steps,
        ):
            log.say(describe(state))
            for number, state, metrics in steps:
                guard.add(number, metrics)
                last = number == config.steps
                stop = preemption.reached(number) and not last
                save = number % config.checkpoint_every == 0 or last or stop
                if not (save or number == start + 1 or number % config.log_every == 0):
                    continue
                guard.check()
                log.write(number, jax.device_get(metrics))
                if save:
                    scores = None
                    if validation.due(number) and not stop:
                        scores = validation({**self.frozen(state), **state.trainable}, number)
                        log.add(number, scores)
                    checkpoints.save(state, scores)
                if stop:
                    raise PreemptedError(
                        f"asked to end ({preemption.cause}) after step {number} of {config.steps}; "
                        "the state is saved, and the same command resumes from there"
                    )
        checkpoints.wait()
        return state

    def _steps(self, state: TrainState, log: Log) -> Generator[tuple[int, TrainState, Metrics]]:
        """Each step's number, the state after it (which the next step donates) and its metrics."""
        start, steps = int(state.step), self._config.steps
        program: Step | None = None
        with (
            closing(self._task.batches(start)) as made,
            closing(
                prefetch(put_batch(batch, self.mesh) for batch in islice(made, steps - start))
            ) as batches,
            closing(Profile(self._workdir / "profile", self._config.profile_steps)) as profile,
        ):
            for number, batch in enumerate(log.waiting(batches), start + 1):
                profile.before(number)
                program = program or self._compile(state, batch, log)
                state, metrics = program(state, batch)
                profile.after(number, metrics)
                yield number, state, metrics

    def _compile(self, state: TrainState, batch: Batch, log: Log) -> Step:
        """The step for arguments of these shapes and shardings.

        Compiled by hand: called as it is, jit compiles again for its own output.
        """
        self._startup.mark("data")
        if log.wants_flops:
            log.flops = count_flops(self._step(self._task.without_remat()), state, batch)
        shardings = jax.tree.map(lambda array: array.sharding, state)
        # The frozen part is returned as it came: where it is donated as well, XLA does not copy it.
        jitted = jax.jit(
            self._step(self._task),
            donate_argnums=0,
            out_shardings=(shardings, replicated(self.mesh)),
        )
        lowered = jitted.lower(state, batch)
        self._startup.mark("trace")
        program = lowered.compile()
        self._startup.mark("compile")
        log.restart()
        return program

    def _step(self, rules: Rules) -> Step:
        loss = make_loss(rules, self._config.compute_dtype)
        return make_train_step(loss, self._optimizer, self._config)
