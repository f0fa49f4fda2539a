"""Labeled pictures as training batches, by Grain: any step's batch can be made for itself.

The order is one permutation an epoch, drawn from the seed; the augmentation of a picture follows
from its place in that order. Processes share each batch between them. So the step number is the
whole state: a resume goes on with the very next example under any number of workers, threads or
processes.
"""

from collections.abc import Generator
from typing import Any

import grain
from absl import flags

from sammi_jax.typing import NpArray

_THREADS = 4  # Pillow decodes without Python's lock
_BATCHES_AHEAD = 4


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
    # Shares are cut from the finished stream: what an example looks like is the same in each.
    share = examples[process::num_processes]
    return share.batch(batch_size // num_processes, drop_remainder=True)


def in_order(source: Any, transforms: list[Any], batch_size: int) -> grain.MapDataset:
    """Every example once, by its index; the last batch may be short. No transform is random."""
    examples = grain.MapDataset.source(source)
    for transform in transforms:
        examples = examples.map(transform)
    return examples.batch(batch_size)


def iterate(batches: grain.MapDataset, start: int, workers: int) -> Generator[dict[str, NpArray]]:
    """Batches from ``start`` on, made ahead by threads, or by worker processes (0: none)."""
    ahead = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    stream = batches[start:].to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(stream)
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
