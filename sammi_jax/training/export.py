"""A checkpoint of a run as a model folder; the run may be in progress, stopped or finished."""

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from sammi_jax.config.experiment import CaptionConfig, SegmentConfig, TrainConfig
from sammi_jax.config.files import read_run_config
from sammi_jax.errors import SammiError
from sammi_jax.files import check_destination
from sammi_jax.object_store import AnyPath, absolute, exists
from sammi_jax.training.checkpoint import CHECKPOINTS_FOLDER, checkpoint_steps, digest, read_trained
from sammi_jax.training.state import trainable_paths
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.kinds import Kind


def find_run(source: AnyPath) -> tuple[AnyPath, int | None] | None:
    """The work folder and the step that a path names; None where it is no run of training.

    The step is None, for the newest, with ``RUN`` and ``RUN/checkpoints``, and given with
    ``RUN/checkpoints/STEP``.
    """
    source = absolute(source)
    step = None
    if source.name.isdecimal() and source.parent.name == CHECKPOINTS_FOLDER:
        source, step = source.parent, int(source.name)
    if source.name == CHECKPOINTS_FOLDER:
        source = source.parent
    return (source, step) if exists(source / CHECKPOINTS_FOLDER) else None


def kind_of_run(config: TrainConfig) -> Kind:
    """Which model a run trains."""
    if isinstance(config.task, SegmentConfig):
        return "catseg" if config.task.model.masks is None else "sammi"
    return "clip" if isinstance(config.task, CaptionConfig) else "sam"


def convert_run(workdir: AnyPath, step: int | None, destination: AnyPath) -> int:
    """Make a model folder of a run's checkpoint, atomically.

    Args:
        workdir: of the run; it is only read. What its configuration names (model folders, data)
            must still be there.
        step: of the checkpoint; None: of the newest.
        destination: the model folder; it must not exist, or be empty.

    Returns:
        The step.

    Raises:
        SammiError: there is no such run or checkpoint, or it is damaged or of another model.
    """
    check_destination(destination)
    steps = checkpoint_steps(workdir)
    if not steps or step not in (None, *steps):
        there = f"there are {', '.join(map(str, steps))}" if steps else "there are none yet"
        raise SammiError(f"{workdir / CHECKPOINTS_FOLDER}: no such checkpoint; {there}")
    step = steps[-1] if step is None else step
    config = read_run_config(workdir)
    task = make_task(config)
    params = {path: np.asarray(value) for path, value in task.initial_params(config.seed).items()}
    chosen = trainable_paths(task)
    frozen = {path: value for path, value in params.items() if path not in chosen}
    here = SingleDeviceSharding(jax.local_devices()[0])  # whatever devices it was saved from
    shapes = {
        path: jax.ShapeDtypeStruct(params[path].shape, params[path].dtype, sharding=here)
        for path in chosen
    }
    trained = read_trained(workdir, step, shapes, digest(frozen))
    params = frozen | {path: np.asarray(value) for path, value in trained.items()}
    task.export(params, destination, step)
    return step
