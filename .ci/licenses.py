"""Writes the table of licenses of every package that an installation brings along.

Command: make licenses (python .ci/licenses.py docs/licenses.md, with pip-licenses installed)
"""

import json
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PREAMBLE = """# Licenses

sammi_jax itself is under Apache-2.0; the file `NOTICE` names its sources. An installation without
extras brings these packages along, on Linux; `make licenses` wrote the table from their own
metadata. Plugins for accelerators (`jax[cuda13]`, `jax[tpu]`) have terms of NVIDIA and Google.
Weights have licenses of their own ([Weights](weights.md)).

| package | license |
|---|---|
"""


def installed_requirements(requirements: list[str]) -> set[str]:
    """The canonical names of all packages that these requirements need, directly or not."""
    seen: set[str] = set()
    pending = [Requirement(line) for line in requirements]
    while pending:
        requirement = pending.pop()
        extras = {"", *requirement.extras}
        name = canonicalize_name(requirement.name)
        if name in seen and not requirement.extras:
            continue
        seen.add(name)
        for line in distribution(name).requires or []:
            inner = Requirement(line)
            wanted = inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in extras
            )
            if wanted and canonicalize_name(inner.name) not in seen:
                pending.append(inner)
    return seen


def runtime_requirements() -> list[str]:
    """The lines of requirements.txt, without comments."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [stripped for line in lines if (stripped := line.split("#")[0].strip())]


def title(license_text: str) -> str:
    """A license's name in one line; some packages give its whole text instead."""
    return " ".join(re.split(r"https?:|Copyright", license_text)[0].split())


def main() -> None:
    """Writes the table into the file that is the argument."""
    names = sorted(installed_requirements(runtime_requirements()))
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    found = json.loads(subprocess.check_output([*command, "--packages", *names], text=True))
    rows = sorted((canonicalize_name(row["Name"]), row["License"]) for row in found)
    missing = set(names) - {name for name, _ in rows}
    if missing:
        sys.exit(f"no license found for {', '.join(sorted(missing))}")
    table = "".join(f"| {name} | {title(text)} |\n" for name, text in rows)
    Path(sys.argv[1]).write_text(PREAMBLE + table)


if __name__ == "__main__":
    main()
