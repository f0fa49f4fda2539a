"""``sammi push``: upload a model folder to the Hugging Face Hub."""

import argparse
from typing import Any

from sammi_jax.object_store import as_path

_DESCRIPTION = """\
Upload a model folder (config.json, model.safetensors, tokenizer.json) to the Hugging Face Hub
as one commit; the repository is created if need be. A README.md in the folder becomes the
model card; without one, a card is made from config.json: license, origin, architecture, use.

Needs a token that may write: 'hf auth login', or the environment variable HF_TOKEN."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "push",
        help="upload a model folder to the Hugging Face Hub",
        description=_DESCRIPTION,
        epilog="example:\n  sammi push runs/sammi/model my-name/sammi-vitb16 --private",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=as_path, help="a model folder")
    parser.add_argument("repository", metavar="ORG/NAME", help="the repository to write to")
    parser.add_argument(
        "--private", action="store_true", help="create the repository for its members only"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Upload, and print the commit's address."""
    from sammi_jax.weights.push import push

    print(push(args.folder, args.repository, private=args.private))
    return 0
