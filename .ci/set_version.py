"""Writes a release's number where the package states it, and its heading into CHANGELOG.md.

Command: python .ci/set_version.py X.Y.Z YYYY-MM-DD (`make release` calls it)
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def released_changelog(text: str, version: str, day: str) -> str:
    """The changelog with all that is under "Unreleased" moved under the new version.

    Raises:
        ValueError: nothing is listed under "Unreleased", or the version is there already.
    """
    head, found, rest = text.partition("## [Unreleased]\n")
    changes = re.split(r"^## \[", rest, maxsplit=1, flags=re.MULTILINE)[0]
    if not found or not re.search(r"^- ", changes, re.MULTILINE):
        raise ValueError("CHANGELOG.md lists nothing under [Unreleased]")
    if f"## [{version}]" in text:
        raise ValueError(f"CHANGELOG.md has {version} already")
    head = head.replace(" There has been no release yet.", "")
    return f"{head}## [Unreleased]\n\n## [{version}] - {day}\n{rest}"


def with_version(text: str, pattern: str, version: str) -> str:
    """The text with the version behind this pattern replaced; the pattern must occur once.

    Raises:
        ValueError: it does not.
    """
    text, count = re.subn(rf"^({pattern})[0-9.]+", rf"\g<1>{version}", text, flags=re.MULTILINE)
    if count != 1:
        raise ValueError(f"{pattern!r} occurs {count} times")
    return text


def main() -> None:
    """Changes the files, all of them or none."""
    version, day = sys.argv[1:]
    changed = {
        "CHANGELOG.md": lambda text: released_changelog(text, version, day),
        "pyproject.toml": lambda text: with_version(text, 'version = "', version),
        "sammi_jax/__init__.py": lambda text: with_version(text, '__version__ = "', version),
        "CITATION.cff": lambda text: with_version(text, "version: ", version),
    }
    try:
        texts = {name: change((ROOT / name).read_text()) for name, change in changed.items()}
    except ValueError as error:
        sys.exit(f"release: {error}")
    for name, text in texts.items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
