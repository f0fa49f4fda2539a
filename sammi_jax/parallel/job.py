"""Several processes as one job: found in the environment, or given by flags."""

import argparse
import json
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sammi_jax.errors import SammiError, one_line
from sammi_jax.parallel.channel import EXIT_FAILED, Channel
from sammi_jax.parallel.watchdog import LOST_AFTER_S

JOIN_TIMEOUT_S = 300.0  # a job whose processes are not all there by then is given up
_MAX_BYTES = 1024  # of what process 0 tells the others at the start


class Preemption:
    """Whether this job was asked to end: by SIGTERM to any of its processes, or by Ctrl-C.

    Inside the ``with`` block SIGTERM ends nothing. Once it came it never does, so that another
    one cannot break what is being saved. A process alone takes a first Ctrl-C for SIGTERM; a second
    one interrupts it.

    Attributes:
        cause: the signal's name.
    """

    def __init__(self):
        self.cause = "SIGTERM"
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Preemption":
        # jax.distributed has a handler of its own, and Python takes signals in its main thread only
        if not jax.distributed.is_initialized() and (
            threading.current_thread() is threading.main_thread()
        ):
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if number == signal.SIGINT or not self._asked:
                signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self._asked:
                raise KeyboardInterrupt
            print(
                "\nsaving after this step; Ctrl-C again ends at once", file=sys.stderr, flush=True
            )
        if not self._asked:
            self.cause = signal.Signals(number).name
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


def join(program: str, options: argparse.Namespace, channel: Channel) -> None:
    """Join the job, before anything else touches a device, and let the watchdogs find each other.

    Where the network does not let them, warn and do without.

    Raises:
        SammiError: there is no such job.
    """
    # JAX ends a process that waits too long by an abort: a thread is earlier, and says what it is.
    timer = threading.Timer(JOIN_TIMEOUT_S, _give_up, (program, options))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
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
    if jax.process_count() > 1:
        _join_watchdogs(options, channel)


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


def _join_watchdogs(options: argparse.Namespace, channel: Channel) -> None:
    process, given = jax.process_index(), []
    if options.coordinator is not None:  # an address that is known to be reachable
        given = [options.coordinator.rsplit(":", 1)[0].strip("[]")]
    first = _from_process_0(
        {"hosts": _addresses(), "port": channel.port, "token": secrets.randbits(31)}
    )
    hosts = [*given, *first["hosts"]]
    problem = channel.join(process, jax.process_count(), hosts, first["port"], first["token"])
    if anywhere(bool(problem)):
        warnings.warn(
            f"process {process}: {problem or 'another process cannot reach process 0'}: a lost "
            f"process is noticed by JAX's own heartbeat only, after {2 * LOST_AFTER_S:g} s",
            stacklevel=2,
        )
        channel.leave()


def _addresses() -> list[str]:
    """Where other processes may find this one: its addresses in the network, and its name."""
    found = []
    # Addresses that belong to nobody (RFC 5737, RFC 3849): nothing is sent, the system only says
    # from which of its own addresses it would send.
    for family, nobody in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((nobody, 9))
            found.append(probe.getsockname()[0])
    return [*found, socket.gethostname()]


def _from_process_0(values: dict[str, Any]) -> dict[str, Any]:
    """The values that process 0 gives, in all processes."""
    text = json.dumps(values).encode().ljust(_MAX_BYTES)
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    return json.loads(np.asarray(told, np.uint8).tobytes())
