"""One job at a time on the device, and a bounded number of requests that wait for it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sammi_jax.serve.limits import RequestError

T = TypeVar("T")


class Worker:
    """A thread for the device.

    A request takes a place before its body is read and keeps it until it is answered, so that the
    number of places also bounds what lies in memory.

    Args:
        waiting: places beside that of the request in work.
    """

    def __init__(self, waiting: int):
        self.places = waiting + 1
        self._lock = threading.Lock()
        self._taken = 0
        self._pending: set[Future] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sammi-worker")

    @property
    def taken(self) -> int:
        """Requests that are being read, wait, or are in work."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        with self._lock:
            return sum(not (job.running() or job.done()) for job in self._pending)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for the time of the block.

        Raises:
            RequestError: 429, there is none.
        """
        with self._lock:
            if self._taken >= self.places:
                raise RequestError(
                    429, f"{self._taken} requests are in work or waiting; try again later"
                )
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1

    def run(self, job: Callable[[], T], seconds: float | None = None) -> T:
        """The result of a job.

        A job that has begun cannot be stopped: after a time-out it runs on, and its result is
        dropped.

        Args:
            job: called in the worker's thread.
            seconds: for waiting, and then again for the work; None: no bound.

        Raises:
            RequestError: 503, the job did not begin in time; 504, it did not end in time.
            Exception: what the job raises.
        """
        begun = threading.Event()

        def marked() -> T:
            begun.set()
            return job()

        future = self._thread.submit(marked)
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)
        if not begun.wait(seconds) and future.cancel():
            raise RequestError(
                503, f"the request waited {seconds:g} seconds for the device; try again later"
            )
        try:
            return future.result(seconds)
        except TimeoutError as error:
            if future.done():  # it is the job's own
                raise
            raise RequestError(
                504, f"not done after {seconds:g} seconds; give a smaller image or fewer classes"
            ) from error

    def _forget(self, job: Future) -> None:
        with self._lock:
            self._pending.discard(job)

    def close(self) -> None:
        """Take no more jobs; those that wait are dropped."""
        self._thread.shutdown(wait=False, cancel_futures=True)
