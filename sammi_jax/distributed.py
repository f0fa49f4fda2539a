"""Several processes as one job: found in the environment, or given by flags."""

import argparse
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sammi_jax.errors import SammiError

# A process that stops answering is missed after this long, and the others end with an error.
HEARTBEAT_TIMEOUT_S = 60

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags for a job that no scheduler describes."""
    group = parser.add_argument_group(
        "several processes",
        "on Cloud TPU pods and under Slurm give --distributed alone; elsewhere all three others",
    )
    group.add_argument(
        "--distributed", action="store_true", help="join the job that the environment describes"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 to N - 1")


def join(options: argparse.Namespace) -> None:
    """Join the job, if this is one; before anything else touches a device.

    Raises:
        SammiError: flags that do not go together, or no such job.
    """
    flags = (options.coordinator, options.num_processes, options.process_id)
    given = [flag is not None for flag in flags]
    if not options.distributed and not any(given):
        return
    if any(given) and not all(given):
        raise SammiError("--coordinator, --num-processes and --process-id belong together")
    try:
        jax.distributed.initialize(*flags, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S)
    except (ValueError, RuntimeError) as error:
        raise SammiError(
            f"cannot join the job ({str(error).splitlines()[0]}); give --coordinator HOST:PORT, "
            "--num-processes N and --process-id I"
        ) from error
