"""Arguments that several commands share."""

import argparse
import sys
from pathlib import Path

from sammi_jax.object_store import AnyPath, as_path
from sammi_jax.weights.bundled import DEFAULT


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config NAME_OR_FILE`` and any number of ``--set FIELD=VALUE`` (`sammi_jax.config`)."""
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        required=True,
        help="a packaged configuration, such as openshapes_catseg, or a Python file that defines "
        "config",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the configuration, such as optim.peak_lr=1e-4; may be given "
        "several times",
    )


def add_model_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """``--model DIR_OR_NAME``; without it the small model that comes with the package."""
    parser.add_argument(
        "--model",
        metavar="DIR_OR_NAME",
        type=as_path,
        help=f"{what}, or the name of one on the Hugging Face Hub: ORG/NAME or "
        "ORG/NAME@REVISION; default: openshapes, the small SAM-MI that comes with the package and "
        "knows only the scenes of OpenShapes",
    )


def chosen_model(args: argparse.Namespace) -> AnyPath:
    """The model folder to use; says so where none was named."""
    if args.model is not None:
        return args.model
    print(
        "sammi: no --model: using the bundled model openshapes, which knows only OpenShapes",
        file=sys.stderr,
    )
    return Path(DEFAULT)


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of one process of a job (`sammi_jax.parallel.run`)."""
    group = parser.add_argument_group(
        "several processes",
        "Run the same command in each process: with --distributed on Cloud TPU pods and under\n"
        "Slurm, elsewhere with the three other flags.",
    )
    group.add_argument(
        "--distributed", action="store_true", help="join the job that the environment describes"
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, such as 10.0.0.1:1234"
    )
    group.add_argument("--num-processes", type=int, metavar="N", help="number of processes")
    group.add_argument(
        "--process-id", type=int, metavar="I", help="number of this process, from 0 to N - 1"
    )
