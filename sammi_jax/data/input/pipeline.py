"""Training batches, by Grain: the batch of any step can be made without those before it.

The order is one permutation an epoch, drawn from the seed; the augmentation of an image follows
from its place in that order. The processes of a job share each batch between them, and each makes
its own share only. So the step number is the whole state: a run resumes with the very next example
under any number of processes, worker processes or threads.
"""

import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

import grain
from absl import flags

from sammi_jax.errors import SammiError
from sammi_jax.typing import Int, NpArray

# Grain's own words.
_LOST_WORKER = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
THREADS = 4  # Pillow decodes without Python's lock
_THREADS_OF_BUCKET = 16  # most of them wait for an answer (benchmarks/README.md)


def _start_worker(number: int, count: int) -> None:
    """Let a worker process end with the run alone.

    A terminal sends Ctrl-C to it as well, and a scheduler SIGTERM, but the run that saves then may
    still wait for its batch. And a run that is killed cannot end it.
    """
    del number, count
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def batch_stream(
    source: Any,
    transforms: list[Any],
    *,
    batch_size: int,
    seed: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.MapDataset:
    """An endless dataset whose element ``k`` is this process's share of batch ``k``.

    Args:
        source: random access to examples.
        transforms: of one example, in order; random ones are Grain's ``RandomMap``.
        batch_size: over all processes.
        seed: of order and augmentation.
        process: which share.
        num_processes: how many shares; divides ``batch_size``.
    """
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    for transform in transforms:
        if isinstance(transform, grain.transforms.RandomMap):
            examples = examples.random_map(transform)
        else:
            examples = examples.map(transform)
    return _shares(examples, batch_size, process, num_processes)


def drawn_stream(
    draw: Callable[[Int[NpArray, " b"]], dict[str, NpArray]],
    num_examples: int,
    *,
    batch_size: int,
    seed: int,
    process: int = 0,
    num_processes: int = 1,
) -> grain.MapDataset:
    """As `batch_stream`, of examples that are computed from their indices, a share at a time.

    Grain's own work for each example of a source is a fifth of what drawing a caption costs.

    Args:
        draw: the examples of these indices, stacked.
        num_examples: indices are below this.
        batch_size: over all processes.
        seed: of the order.
        process: which share.
        num_processes: how many shares; divides ``batch_size``.
    """
    indices = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    return _shares(indices, batch_size, process, num_processes).map(draw)


def _shares(
    examples: grain.MapDataset, batch_size: int, process: int, num_processes: int
) -> grain.MapDataset:
    """One process's consecutive part of each batch: together the parts are the batch, in order."""
    parts = examples.batch(batch_size // num_processes, drop_remainder=True)
    return parts[process::num_processes]


def in_order(source: Any, transforms: list[Any], batch_size: int) -> grain.MapDataset:
    """Every example once, in the source's order; the last batch may be short.

    No transform may be random.
    """
    examples = grain.MapDataset.source(source)
    for transform in transforms:
        examples = examples.map(transform)
    return examples.batch(batch_size)


def threads_for(source: Any) -> int:
    """How many threads `iterate` needs for the examples of a source."""
    return _THREADS_OF_BUCKET if getattr(source, "is_remote", False) else THREADS


def iterate(
    batches: grain.MapDataset, start: int, workers: int, threads: int = THREADS
) -> Generator[dict[str, NpArray]]:
    """Batches from ``start`` on, made ahead.

    Args:
        batches: of this process.
        start: number of the first one.
        workers: processes that make them; 0: this one.
        threads: of each of these processes; every one makes a batch, so that as many are ready or
            being made.

    Raises:
        SammiError: a worker process was killed.
    """
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    stream = batches[start:].to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        stream = stream.mp_prefetch(options, worker_init_fn=_start_worker)
    iterator = iter(stream)
    try:
        yield from iterator
    except RuntimeError as error:
        code = _LOST_WORKER.search(str(error))
        if code is None:
            raise
        raise SammiError(
            f"a data worker process ended with exit code {code[1]} (-9: it was killed, as where "
            f"memory runs out; the others are stopped); free memory or lower data.workers="
            f"{workers}, and run the same command again to resume"
        ) from error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
