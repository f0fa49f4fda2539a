"""The tasks that `sammi_jax.training.loop` trains."""

from sammi_jax.config.experiment import CaptionConfig, PromptConfig, SegmentConfig, TrainConfig
from sammi_jax.errors import SammiError
from sammi_jax.training.task import Task
from sammi_jax.training.tasks.caption import CaptionTask
from sammi_jax.training.tasks.prompt import PromptTask
from sammi_jax.training.tasks.segment import SegmentTask


def make_task(config: TrainConfig) -> Task:
    """The task that ``config.task`` describes.

    Raises:
        SammiError: there is no such task, or its configuration or data cannot be used.
    """
    match config.task:
        case CaptionConfig():
            return CaptionTask(config, config.task)
        case PromptConfig():
            return PromptTask(config, config.task)
        case SegmentConfig():
            return SegmentTask(config, config.task)
    raise SammiError(f"task: no task is configured by {type(config.task).__name__}")
