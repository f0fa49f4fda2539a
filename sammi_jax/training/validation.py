"""Evaluation during training, on the data sets of the configuration's ``validation``."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.errors import SammiError
from sammi_jax.evaluation.evaluator import Evaluation
from sammi_jax.object_store import AnyPath, as_path
from sammi_jax.parallel.batch import fetch
from sammi_jax.training.checkpoint import SCORE
from sammi_jax.training.task import Task

FOLDER = "validation"
_LOGGED = ("miou", "seen_miou", "unseen_miou", "harmonic_mean", "points_per_image")


class Validation:
    """Evaluates the present parameters. Data sets are opened once, programs compiled once.

    Raises:
        SammiError: ``validate_every`` is not a multiple of ``checkpoint_every``, the task makes no
            label maps, or a data set cannot be opened.
    """

    def __init__(self, task: Task, config: TrainConfig, mesh: Mesh, workdir: AnyPath):
        self._task, self._config, self._mesh, self._workdir = task, config, mesh, workdir
        self._predictor: Any = None
        self._evaluations: dict[str, Evaluation] = {}
        if not config.validation:
            return
        if not isinstance(config.task, SegmentConfig):
            raise SammiError(
                f"validation: a {config.task.kind} experiment makes no label maps; leave it out"
            )
        if config.validate_every < 1 or config.validate_every % config.checkpoint_every:
            raise SammiError(
                f"validate_every={config.validate_every} is not a multiple of checkpoint_every="
                f"{config.checkpoint_every}: each evaluated state is also saved"
            )
        data_dir = None if config.data.data_dir is None else as_path(config.data.data_dir)
        self._datasets = [
            open_dataset(name, config.eval.num_examples, data_dir=data_dir)
            for name in config.validation
        ]

    def due(self, step: int) -> bool:
        """Whether the model is evaluated after this step."""
        config = self._config
        return bool(config.validation) and (
            step % config.validate_every == 0 or step == config.steps
        )

    def __call__(self, params: Mapping[str, Any], step: int) -> dict[str, float]:
        """Evaluate: numbers by name, and as `SCORE` the mean of the data sets' mIoU.

        Images that ``config.eval`` asks for go to ``workdir/validation/STEP``.
        """
        params = {path: fetch(value) for path, value in params.items()}
        self._show(params)
        values: dict[str, float] = {}
        for name, evaluation in self._evaluations.items():
            folder = self._workdir / FOLDER / f"{step:08d}"
            record = evaluation(folder, {"step": step, "seed": self._config.seed})
            values |= {
                f"{key}/{name}": float(record[key])
                for key in _LOGGED
                if record.get(key) is not None
            }
        scores = [values[f"{SCORE}/{name}"] for name in self._evaluations]
        return values | {SCORE: sum(scores) / len(scores)}

    def _show(self, params: Mapping[str, Any]) -> None:
        """Put these parameters into the predictor, which is made at the first call."""
        if self._predictor is not None:
            self._predictor.replace_params(params)
            return
        self._predictor = self._task.predictor(params)
        self._evaluations = {
            dataset.name: Evaluation(self._predictor, dataset, self._config.eval, self._mesh)
            for dataset in self._datasets
        }
