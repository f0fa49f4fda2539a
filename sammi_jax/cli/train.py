"""``sammi train``: train an experiment; run it again to resume."""

import argparse
from typing import Any

from sammi_jax.cli.options import add_config_arguments, add_job_arguments
from sammi_jax.object_store import as_path, shown

_DESCRIPTION = """\
Train an experiment. Run the same command again to resume from the newest checkpoint in DIR. The
trained model folder is DIR/model (docs/training.md)."""
_EPILOG = """\
Exit codes: 0 trained; 1 stopped by an error; 2 wrong use; 75 stopped by SIGTERM or Ctrl-C with the
state saved, or a process of the job was lost: run the same command again (in all processes) to
resume; 130 interrupted before anything was saved.

example:
  sammi train --config openshapes_clip --workdir runs/clip --set steps=100 --set log_every=5"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train an experiment; run it again to resume",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        type=as_path,
        help="folder for checkpoints, log and model",
    )
    add_job_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, as one process of a job where the flags say so."""
    from sammi_jax.parallel.run import run_job

    return run_job("sammi train", args, lambda: _train(args))


def _train(args: argparse.Namespace) -> str:
    """Where the trained model is."""
    from sammi_jax.config.files import load_config
    from sammi_jax.training.checkpoint import quiet_orbax
    from sammi_jax.training.loop import train
    from sammi_jax.training.tasks import make_task

    quiet_orbax()
    config = load_config(args.config, args.set)
    folder = train(make_task(config), config, args.workdir, _age())
    return f"trained model: {shown(folder)}"


def _age() -> float:
    """Seconds since this process began."""
    import time

    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())
