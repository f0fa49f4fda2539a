"""The ``sammi`` command: runs a subcommand, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted; 75 of `sammi_jax.parallel.run`.

A command is a module of this package with ``add_parser(subparsers)`` and ``run(args) -> int``,
listed in `COMMANDS`. Slow imports are inside ``run``, so that ``--help`` is quick.
"""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from sammi_jax import __version__
from sammi_jax.cli import (
    bench,
    cache,
    convert,
    datasets,
    doctor,
    evaluate,
    export,
    inspect,
    masks,
    push,
    segment,
    serve,
    train,
    weights,
)
from sammi_jax.cli import compile as compile_command
from sammi_jax.errors import SammiError
from sammi_jax.files import disk_problem
from sammi_jax.object_store import bucket_errors
from sammi_jax.parallel.backend import backend_errors
from sammi_jax.parallel.channel import EXIT_INTERRUPTED
from sammi_jax.parallel.compilation_cache import use_compilation_cache

COMMANDS = (
    doctor,
    weights,
    convert,
    inspect,
    push,
    datasets,
    segment,
    masks,
    serve,
    train,
    evaluate,
    cache,
    export,
    compile_command,
    bench,
)

# They log with a traceback what they raise as well.
_LOGGERS = ("fsspec", "gcsfs", "google.auth", "s3fs")

_DESCRIPTION = """\
SAM-MI: open-vocabulary semantic segmentation in JAX.

A model lives in a model folder (config.json, model.safetensors, tokenizer.json), made from
PyTorch checkpoints by 'sammi convert'."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="sammi",
        description=_DESCRIPTION,
        epilog="'sammi COMMAND --help' explains a command and gives an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sammi_jax {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong use leaves through ``SystemExit(2)``."""
    parser = make_parser()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        args = parser.parse_args(argv)
        if not hasattr(args, "run"):
            parser.error("name a command; 'sammi --help' lists them")
        with warnings.catch_warnings(), backend_errors(), bucket_errors():
            warnings.showwarning = _show_warning
            if not hasattr(args, "process_id"):  # one that may be part of a job joins it first
                use_compilation_cache()
            code = args.run(args)
        sys.stdout.flush()
        return code
    except SammiError as error:
        return _fail(str(error))
    except BrokenPipeError:  # what reads our output (a pager, head) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        problem = disk_problem(error) or error.strerror or str(error)
        return _fail(f"{error.filename or 'system'}: {problem}")
    except KeyboardInterrupt:
        print("sammi: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def console(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as a program. After Ctrl-C it ends at once: JAX's threads may be in the middle of
    something, and an orderly end would wait for them or crash.
    """
    code = main(argv)
    if code == EXIT_INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"sammi: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str) -> int:
    print("sammi: error:", " ".join(message.split()), file=sys.stderr)
    return 1


if __name__ == "__main__":
    console()
