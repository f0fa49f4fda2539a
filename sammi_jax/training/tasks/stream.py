"""Tasks whose batches are made by Grain."""

from collections.abc import Generator
from contextlib import closing

import grain
import jax

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.data.input.pipeline import THREADS, iterate
from sammi_jax.parallel.batch import Batch
from sammi_jax.training.task import M, Task
from sammi_jax.typing import NpArray


class StreamTask(Task[M]):
    """A task with batches from `sammi_jax.data.input.pipeline`.

    Args:
        stream: element ``k`` is this process's share of batch ``k``.
        workers: processes that make batches; 0: this one.
        threads: of each of these.
    """

    def __init__(self, stream: grain.MapDataset, workers: int, threads: int = THREADS):
        self._stream, self._workers, self._threads = stream, workers, threads

    def batches(self, start: int) -> Generator[Batch]:
        """The batches from a step on, made ahead."""
        with closing(iterate(self._stream, start, self._workers, self._threads)) as made:
            for arrays in made:
                yield self.to_batch(arrays)

    def to_batch(self, arrays: dict[str, NpArray]) -> Batch:
        """A batch of the stream's arrays."""
        return Batch(arrays)


def this_share(config: TrainConfig) -> dict[str, int]:
    """Which share of which batches this process makes: arguments of `batch_stream`."""
    return {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "process": jax.process_index(),
        "num_processes": jax.process_count(),
    }
