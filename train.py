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
from sammi_jax.distributed import add_arguments, run_job
from sammi_jax.watchdog import EXIT_AGAIN


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: the process's)."""
    parser = argparse.ArgumentParser(
        description="Train an experiment; resumes by itself.",
        epilog="Exit codes: 0 trained; 1 refused or stopped, with a message; 2 wrong use; "
        f"{EXIT_AGAIN} SIGTERM came and the state is saved, or another process of the job was "
        "lost: the same command (in all processes) goes on.",
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

    def work() -> str:
        config = load_config(options.config, options.set)
        folder = train(make_task(config), config, options.workdir)
        return f"trained model: {os.path.relpath(folder)}"

    return run_job("train.py", options, work)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"train.py: warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
