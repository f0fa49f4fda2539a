"""Counts and durations of requests, in the text format of Prometheus."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sammi_jax.errors import SammiError
from sammi_jax.serve.limits import RequestError
from sammi_jax.serve.worker import Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What a server counts.

    Args:
        worker: whose queue is watched.
    """

    def __init__(self, worker: Worker):
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sammi_requests",
            "Requests, by what asked (api, page), for what (segment, masks), and HTTP status.",
            ("source", "operation", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "sammi_request_seconds",
            "Seconds from a request to its answer.",
            ("source", "operation"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._gauge("sammi_queue_waiting", "Jobs that wait for the device.", lambda: worker.waiting)
        self._gauge(
            "sammi_requests_open",
            "Requests that are being read, wait, or are in work.",
            lambda: worker.taken,
        )

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)

    def count(self, source: str, operation: str, status: int, seconds: float) -> None:
        """Count one request that was answered."""
        self._requests.labels(source, operation, str(status)).inc()
        self._seconds.labels(source, operation).observe(seconds)

    @contextmanager
    def measure(self, source: str, operation: str) -> Iterator[None]:
        """Count the block as a request; its status follows from the error that leaves it."""
        start, status = time.perf_counter(), 200
        try:
            yield
        except BaseException as error:
            status = status_of(error)
            raise
        finally:
            self.count(source, operation, status, time.perf_counter() - start)

    def text(self) -> str:
        """What Prometheus reads."""
        return generate_latest(self._registry).decode()


def status_of(error: BaseException) -> int:
    """The HTTP status of an error: 422 for input that cannot be used, 500 for our own."""
    if isinstance(error, RequestError):
        return error.status
    return 422 if isinstance(error, SammiError) else 500
