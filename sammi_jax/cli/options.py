"""Arguments that several commands share."""

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config FILE`` and any number of ``--set a.b=value`` (`sammi_jax.experiment`)."""
    parser.add_argument("--config", required=True, help="a Python file that defines `config`")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=value",
        help="change one field of the configuration; may be given several times",
    )
