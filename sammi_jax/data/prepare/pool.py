"""Work that is shared between processes, with results in order and one line for an error.

The processes are started afresh (not forked), so that threads of the caller do no harm. They end
with their parent: after Ctrl-C or an error at their next `Tick`, at once if it was killed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sammi_jax.errors import SammiError

T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[int], object]  # called with the number of items that were done since

_MOST = 16  # each needs some 200 MB, and reads and writes files


def default_processes() -> int:
    """One for each CPU that this process may use, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, _MOST)


def in_processes(
    work: Callable[[T, Tick], R], tasks: Sequence[T], processes: int, tick: Tick
) -> Iterator[R]:
    """The result of ``work(task, tick)`` for each task, in order.

    Args:
        work: a function of a module. It calls its second argument with 1 after every item.
        tasks: what it is called with; can be pickled, as can the results.
        processes: at most so many; a single one is this process.
        tick: called with how many items were done: each if this process does the work, else those
            of a task together.

    Raises:
        SammiError: a process was killed.
        Exception: what ``work`` raised, of the first task in order.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        for task in tasks:
            yield work(task, tick)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(processes, context, _begin, (stop,))
    try:
        for future in [pool.submit(_run, work, task) for task in tasks]:
            result, items = future.result()
            tick(items)
            yield result
    except BrokenProcessPool as error:
        raise SammiError(
            "a process that did a part of the work was killed, perhaps for lack of memory; run the "
            "same command again with fewer --processes"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """The parent wants no more of this."""


_stop: Any = None  # of this child


def _begin(stop: Any) -> None:
    """In a child, before its first task."""
    global _stop  # noqa: PLW0603
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[T, Tick], R], task: T) -> tuple[R, int]:
    """The result, and how many items were done."""
    items = 0

    def tick(more: int) -> None:
        nonlocal items
        if _stop.is_set():
            raise _StoppedError
        items += more

    return work(task, tick), items
