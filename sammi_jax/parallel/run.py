"""A command's work, alone or as one process of a job: errors as one line, and exit codes."""

import argparse
import sys
import traceback
from collections.abc import Callable

from sammi_jax.errors import SammiError, one_line
from sammi_jax.object_store import bucket_errors
from sammi_jax.parallel.backend import backend_errors
from sammi_jax.parallel.channel import EXIT_AGAIN, EXIT_FAILED, EXIT_INTERRUPTED
from sammi_jax.parallel.compilation_cache import use_compilation_cache
from sammi_jax.parallel.watchdog import watch


class PreemptedError(Exception):
    """The machine asked the job to end. Its state is saved; the message is one line."""


def run_job(program: str, options: argparse.Namespace, work: Callable[[], str]) -> int:
    """Do the work, as one process of a job where the flags say so, and print what it returns.

    In a job this process forks, and only the child returns (`sammi_jax.parallel.watchdog`). Errors
    are printed as one line that begins with ``program``.

    Args:
        program: the command.
        options: the flags of `sammi_jax.cli.options.add_job_arguments`.
        work: to be done once the job is joined. It imports what it needs: JAX must start after the
            fork.

    Returns:
        The exit code.
    """
    channel = None
    try:
        if _in_job(options):
            channel = watch(program)
            from sammi_jax.parallel.job import join

            join(program, options, channel)
        with backend_errors(), bucket_errors():
            use_compilation_cache()
            print(work())
    except PreemptedError as notice:
        print(f"{program}: {notice}", file=sys.stderr)
        return EXIT_AGAIN
    except SammiError as error:
        text = f"{program}: {error}"
        if channel is not None:
            channel.fail("failed", one_line(error), text)
        print(text, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(
            f"{program}: interrupted; the same command resumes from what is saved", file=sys.stderr
        )
        return EXIT_INTERRUPTED
    except BaseException as error:
        if channel is not None:
            text = f"{type(error).__name__}: {one_line(error)}"
            channel.fail("raised", text, traceback.format_exc())
        raise
    return 0


def _in_job(options: argparse.Namespace) -> bool:
    flags = (options.coordinator, options.num_processes, options.process_id)
    given = [flag is not None for flag in flags]
    if any(given) and not all(given):
        raise SammiError("--coordinator, --num-processes and --process-id belong together")
    return options.distributed or any(given)
