"""Batches by number: what batch k holds follows from (seed, k) alone, so any step can be replayed.

Resuming therefore needs no state of the pipeline: it begins at the batch of the step.
"""

import queue
import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


def batch_indices(step: int, batch_size: int, num_examples: int, seed: int) -> np.ndarray:
    """Indices of the examples of one step, int64 ``[batch_size]``: a new permutation every epoch.

    Batches run over the end of an epoch, so that every example is used equally often.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, num_examples)
    return np.array(
        [
            _permutation(num_examples, seed, int(epoch))[offset]
            for epoch, offset in zip(epochs, offsets, strict=True)
        ]
    )


def prefetch(make: Callable[[int], T], steps: range, size: int = 2) -> Generator[T]:
    """``make(step)`` for every step, computed up to ``size`` ahead in a background thread.

    An exception of ``make`` is raised here, at its step. Closing the iterator ends the thread.
    """
    results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                results.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                put((make(step), None))
                if stopped.is_set():
                    return
        except BaseException as error:  # handed over, whatever it is
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in steps:
            value, error = results.get()
            if error is not None:
                raise error
            yield value  # pyright: ignore[reportReturnType]
    finally:
        stopped.set()
        thread.join()
