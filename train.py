"""Train: ``python train.py --config configs/NAME.py --workdir DIR [--set a.b=value ...]``.

Resumes by itself where DIR holds checkpoints; the trained model folder is DIR/model.
docs/training.md has the logs, the exit codes and jobs of several processes.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from sammi_jax.cli.options import add_config_arguments
from sammi_jax.distributed import EXIT_PREEMPTED, PreemptedError, add_arguments, join
from sammi_jax.errors import SammiError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: the process's)."""
    parser = argparse.ArgumentParser(
        description="Train an experiment; resumes by itself.",
        epilog="Exit codes: 0 trained; 1 refused or stopped, with a message; 2 wrong use; "
        f"{EXIT_PREEMPTED} SIGTERM came and the state is saved: the same command goes on.",
    )
    add_config_arguments(parser)
    parser.add_argument("--workdir", required=True, type=Path, help="for checkpoints and the model")
    add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parse_arguments(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each of its steps
    warnings.showwarning = _show_warning
    from sammi_jax.experiment import load_config
    from sammi_jax.loop import train
    from sammi_jax.tasks import make_task

    try:
        join(options)
        config = load_config(options.config, options.set)
        folder = train(make_task(config), config, options.workdir)
    except SammiError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except PreemptedError as notice:
        print(f"train.py: {notice}", file=sys.stderr)
        return EXIT_PREEMPTED
    print(f"trained model: {os.path.relpath(folder)}")
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"train.py: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
