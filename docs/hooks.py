"""For MkDocs: pages that lie outside of ``docs/``, and the commands' help texts as a page."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from sammi_jax.cli.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
}
_PAGES = {source: page for page, source in ELSEWHERE.items()}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in ``docs/``."""
    for page, source in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a file of the repository lead to its page; blocks say in their title what they need.

    What stands behind ``sh`` is for tests/test_docs_run.py.
    """
    markdown = re.sub(r"^( *```sh) slow$", r"\1", markdown, flags=re.M)
    markdown = re.sub(r'^( *```sh) needs="(.*)"$', r'\1 title="needs \2"', markdown, flags=re.M)

    def page_of(link: re.Match) -> str:
        target = link[1].removeprefix("../").removeprefix("docs/")
        return f"]({_PAGES.get(target, target)}{link[2] or ''})"

    return re.sub(r"\]\(((?:\.\./)?[\w/.-]+\.md)(#[^)]*)?\)", page_of, markdown)


def commands_page() -> str:
    """Every command's help, as it is printed 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    parts = [
        "# Commands\n\nWhat `sammi COMMAND --help` prints. Exit codes: 0 done, 1 failed, 2 wrong "
        "use, 75 interrupted with everything saved, 130 interrupted.\n"
    ]
    for title, parser in [("sammi", make_parser()), *subparsers(make_parser())]:
        parts.append(f"## {title}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(parts)


def subparsers(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """Every command below a parser, with its full name, in the order of the help."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found += [(child.prog, child), *subparsers(child)]
    return found
