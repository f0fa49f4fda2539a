"""``sammi cache``: SAM's image embeddings of a training set, computed once."""

import argparse
import time

from sammi_jax.cli.options import add_config_arguments
from sammi_jax.object_store import as_path

_DESCRIPTION = """\
Run the frozen SAM's image encoder over the training set of a configuration. Training with --set
task.sam_cache=DIR then reads the embeddings instead of computing them (docs/training.md). Run an
interrupted command again to resume."""
_EPILOG = """\
example:
  sammi cache --config openshapes_sammi --out cache/tiny --set data.num_examples=1000"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "cache",
        help="compute SAM's image embeddings of a training set once",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--out", required=True, type=as_path, metavar="DIR", help="the folder to write; must be new"
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="type of the stored embeddings (default: float16)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the cache and say how large it is."""
    from sammi_jax.config.files import load_config
    from sammi_jax.data.input.embeddings import num_bytes
    from sammi_jax.training.embed import make_cache

    began = time.perf_counter()
    info = make_cache(load_config(args.config, args.set), args.out, args.dtype)
    print(
        f"{args.out}: {info.num_examples:,} embeddings of {info.data}, "
        f"{num_bytes(info) / 1e6:,.1f} MB, in {time.perf_counter() - began:.0f} s; "
        f"train with --set task.sam_cache={args.out}"
    )
    return 0
