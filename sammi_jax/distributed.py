"""Several processes as one job: found in the environment, or given by flags."""

import argparse

import jax

from sammi_jax.errors import SammiError

# A process that stops answering is missed after this long, and the others end with an error.
HEARTBEAT_TIMEOUT_S = 60


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
