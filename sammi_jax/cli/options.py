"""Arguments that several commands share."""

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config NAME_OR_FILE`` and any number of ``--set a.b=value`` (`sammi_jax.config`)."""
    parser.add_argument(
        "--config",
        metavar="NAME_OR_FILE",
        required=True,
        help="a packaged configuration, such as openshapes_catseg, or a Python file that defines "
        "`config`",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=value",
        help="change one field of the configuration; may be given several times",
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of one process of a job (`sammi_jax.parallel.job`)."""
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
