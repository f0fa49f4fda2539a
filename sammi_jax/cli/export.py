"""``sammi export``: a model as StableHLO programs that run without this package."""

import argparse
from typing import Any

from sammi_jax.cli.options import add_model_argument, chosen_model
from sammi_jax.object_store import as_path

_DESCRIPTION = """\
Export a model with jax.export: text encoder and segmenter as StableHLO programs for several
platforms, the weights, the tokenizer, manifest.json, and run_exported.py, which segments an image
and needs jax but not sammi_jax. The machine that exports needs no accelerator. docs/export.md
explains the folder."""
_EPILOG = """\
example:
  sammi export --model weights/sammi exported/"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export",
        help="write a model as StableHLO programs that run without this package",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=as_path, help="folder to write, which is new")
    add_model_argument(parser, "a CAT-Seg or SAM-MI model folder")
    parser.add_argument(
        "--platforms",
        metavar="NAMES",
        default="cpu,cuda,tpu",
        help="what the programs shall run on, of cpu, cuda, rocm and tpu (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the folder and list its files."""
    from sammi_jax.export.folder import write_export
    from sammi_jax.files import file_sizes

    platforms = [name.strip() for name in args.platforms.split(",") if name.strip()]
    folder = write_export(chosen_model(args), args.out, platforms)
    for path, size in file_sizes(folder).items():
        print(f"{size:>13,} B  {path}")
    return 0
