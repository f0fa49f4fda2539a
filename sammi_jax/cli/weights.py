"""``sammi weights``: the published checkpoints, where they are and how to convert them."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sammi_jax.weights.published import PUBLISHED, Published, get_published

_DESCRIPTION = """\
List the checkpoints that OpenAI, Meta and CAT-Seg's authors have published. NAME shows one in
full: license, address, SHA-256 and the commands that convert it. Nothing is downloaded."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "weights",
        help="list published checkpoints: license, address, SHA-256, how to convert",
        description=_DESCRIPTION,
        epilog="example:\n  sammi weights clip_vitb16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="an entry of the list")
    parser.add_argument("--json", action="store_true", help="print JSON: a list, or one object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list or the entry."""
    entries = PUBLISHED if args.name is None else (get_published(args.name),)
    if args.json:
        records = [{**asdict(entry), "commands": entry.commands} for entry in entries]
        print(json.dumps(records if args.name is None else records[0], indent=2))
        return 0
    for line in _table(entries) if args.name is None else _in_full(entries[0]):
        print(line)
    return 0


def _table(entries: tuple[Published, ...]) -> Iterator[str]:
    row = "{:17}{:8}{:13}{:12}{:22}{:14}{}".format
    yield row("name", "kind", "owner", "license", "file", "sha256", "Hugging Face Hub").rstrip()
    for entry in entries:
        digest = "-" if entry.sha256 is None else entry.sha256[:10]
        hub = entry.hub or "-"
        yield row(
            entry.name, entry.kind, entry.owner, entry.license, entry.file, digest, hub
        ).rstrip()
    yield ""
    yield "'sammi weights NAME' shows one in full, with the commands that convert it."


def _in_full(entry: Published) -> Iterator[str]:
    yield f"{entry.name}: {entry.title}"
    yield f"  kind      {entry.kind}"
    yield f"  owner     {entry.owner}"
    yield f"  license   {entry.license}"
    yield f"  file      {entry.file}"
    yield f"  address   {entry.url}"
    if entry.sha256 is not None:
        yield f"  sha256    {entry.sha256}"
    yield f"  digest    {entry.sha256_from}"
    if entry.hub is not None:
        yield f"  hub       https://huggingface.co/{entry.hub}"
    for command in entry.commands:
        yield f"  convert   {command}"
