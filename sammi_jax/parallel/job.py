"""Several processes as one job: found in the environment, or given by flags."""

import argparse
import os
import secrets
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state as distributed_state
from jax.experimental import multihost_utils

from sammi_jax.errors import SammiError
from sammi_jax.files import one_line
from sammi_jax.parallel.watchdog import EXIT_AGAIN, EXIT_FAILED, LOST_AFTER_S, Hub, Member, Watchdog

JOIN_TIMEOUT_S = 300.0  # a job whose processes are not all there by then is given up


class PreemptedError(Exception):
    """The machine asked the job to end. Its state is saved; the message is one line."""


class Preemption:
    """Whether the machine asked this job to end, by SIGTERM to any of its processes.

    Inside the ``with`` block SIGTERM ends nothing. Once it came it never does, so that another
    one cannot break what is being saved.
    """

    def __init__(self):
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        # jax.distributed has a handler of its own, and Python takes signals in its main thread only
        if not jax.distributed.is_initialized() and (
            threading.current_thread() is threading.main_thread()
        ):
            self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None and not self._asked:
            signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step; the same answer in all processes.

        To be called after every step, with its number.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


def anywhere(flag: bool) -> bool:
    """Whether the flag holds in any process of the job; all processes must ask."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def run_job(program: str, options: argparse.Namespace, work: Callable[[], str]) -> int:
    """Do the work, as one process of a job where the flags say so, and print what it returns.

    Errors are printed as one line that begins with ``program``. A process that fails does not
    return: it tells the others and ends.

    Returns:
        The exit code.
    """
    watchdog = None
    try:
        watchdog = join(program, options)
        print(work())
        code = 0
    except SammiError as error:
        print(f"{program}: {error}", file=sys.stderr)
        if watchdog is not None:
            watchdog.fail(one_line(error))
        return EXIT_FAILED
    except PreemptedError as notice:
        print(f"{program}: {notice}", file=sys.stderr)
        code = EXIT_AGAIN
    except BaseException as error:
        if watchdog is not None:
            watchdog.wait_for_cause()
            traceback.print_exc()
            watchdog.fail(f"{type(error).__name__}: {one_line(error)}")
        raise
    if watchdog is not None:
        watchdog.leave()
    return code


def join(program: str, options: argparse.Namespace) -> Watchdog | None:
    """Join the job, if this is one; before anything else touches a device.

    Returns:
        What watches the other processes, which then runs; None where there are none.

    Raises:
        SammiError: flags that do not go together, or no such job.
    """
    flags = (options.coordinator, options.num_processes, options.process_id)
    given = [flag is not None for flag in flags]
    if not options.distributed and not any(given):
        return None
    if any(given) and not all(given):
        raise SammiError("--coordinator, --num-processes and --process-id belong together")
    # JAX ends a process that waits too long by an abort: a thread is earlier, and says what it is.
    timer = threading.Timer(JOIN_TIMEOUT_S, _give_up, (program, options))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *flags,
            initialization_timeout=int(2 * JOIN_TIMEOUT_S),
            heartbeat_timeout_seconds=int(2 * LOST_AFTER_S),
        )
    except (ValueError, RuntimeError) as error:
        raise SammiError(
            f"cannot join the job ({one_line(error)}); give --coordinator HOST:PORT, "
            "--num-processes N and --process-id I"
        ) from error
    finally:
        timer.cancel()
    return _watch(program) if jax.process_count() > 1 else None


def _give_up(program: str, options: argparse.Namespace) -> None:
    count = options.num_processes or "all"
    where = options.coordinator or "the address that the environment gives"
    who = "this one" if options.process_id is None else f"this one, number {options.process_id},"
    text = (
        f"the job did not assemble within {JOIN_TIMEOUT_S:g} s: {who} waited for {count} "
        f"processes at {where}; check that each was started, with a --process-id of its own, and "
        "that this address is process 0's and can be reached from the others"
    )
    os.write(2, f"{program}: {text}\n".encode())
    os._exit(EXIT_FAILED)


def _watch(program: str) -> Watchdog | None:
    """Start to watch the others; where the network does not let us, warn and do without."""
    process, count = jax.process_index(), jax.process_count()
    server, port, token = None, 0, secrets.randbits(31)
    if process == 0:
        server = _listen()
        port = server.getsockname()[1]
    port, token = map(int, multihost_utils.broadcast_one_to_all(np.array([port, token], np.int32)))
    # The one thing that JAX tells nobody, and the only address that is known to be reachable.
    host = str(distributed_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
    watchdog, problem = None, None
    try:
        if server is not None:
            watchdog = Hub(program, server, token, count)
        else:
            watchdog = Member(program, (host, port), token, process)
        watchdog.start()
    except OSError as error:
        problem = f"cannot reach port {port} of {host} ({one_line(error)})"
    if anywhere(watchdog is None):
        warnings.warn(
            f"process {process}: {problem or 'another process cannot reach process 0'}: a lost "
            f"process is noticed by JAX's own heartbeat only, after {2 * LOST_AFTER_S:g} s",
            stacklevel=2,
        )
        if watchdog is not None:
            watchdog.stop()
        return None
    return watchdog


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
