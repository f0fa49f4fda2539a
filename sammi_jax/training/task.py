"""The interface between the training loop and a task; the loop knows no model and no data set."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.object_store import AnyPath
from sammi_jax.parallel.batch import Batch
from sammi_jax.weights.params import flat_params

M = TypeVar("M", bound=nnx.Module)


class Rules(ABC, Generic[M]):
    """A model, which of its parameters train, and its loss: what a training step needs."""

    @abstractmethod
    def make(self, rngs: nnx.Rngs) -> M:
        """A freshly initialized model."""

    def is_trainable(self, path: str) -> bool:
        """Whether the parameter trains (buffers never do)."""
        del path
        return True

    def lr_scale(self, path: str) -> float:
        """Factor of the learning rate of a trainable parameter."""
        del path
        return 1.0

    def without_remat(self) -> "Rules[M]":
        """The same rules without recomputed activations, to count the FLOPs that a step needs."""
        return self

    @abstractmethod
    def loss(
        self, model: M, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss to minimize, and scalars for the log."""


class Task(Rules[M]):
    """Rules, and the data and files around them: what the training loop runs."""

    def initial_params(self, seed: int) -> dict[str, Any]:
        """All parameters and buffers by path, at step 0: the same for the same seed."""
        return flat_params(self.make(Keys(seed)))

    @abstractmethod
    def batches(self, start: int) -> Generator[Batch]:
        """This process's shares of the batches from step ``start`` on, as numpy arrays, endlessly.

        What the batch of a step holds follows from the configuration and the step alone. Closing
        the generator ends what makes batches.
        """

    def data_fingerprint(self) -> str:
        """Changes with the files of the training set; empty: it has none."""
        return ""

    def batch(self, step: int) -> Batch:
        """This process's share of one step's batch."""
        with closing(self.batches(step)) as made:
            return next(made)

    def predictor(self, params: Mapping[str, Any]) -> Any:
        """The model with these parameters, as `evaluation.evaluator` wants it.

        Raises:
            SammiError: the task makes no label maps.
        """
        raise SammiError(f"{type(self).__name__} makes no label maps to evaluate")

    @abstractmethod
    def export(self, params: dict[str, Any], folder: AnyPath, step: int) -> None:
        """Write the model after ``step`` steps as a model folder, which every command reads."""
