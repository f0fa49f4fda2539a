"""The commands and the Python of the README and of ``docs/`` run as they are written.

What stands behind the language of a block says how: ``sh`` runs, with the page's other blocks in
one empty folder; ``sh slow`` runs among the slow tests; ``sh needs="..."`` does not run here, and
names what it would need, of `NEEDS`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path.relative_to(ROOT).as_posix()
    for folder in (".", "benchmarks", "docs")
    for path in sorted((ROOT / folder).glob("*.md"))
]
PYTHON_PAGES = ["docs/index.md", "docs/python.md"]
NEEDS = {
    "weights": "published weights",
    "data": "images or labels of others",
    "network": "a download or an upload",
    "hardware": "an accelerator",
    "server": "a running `sammi serve`",
    "bucket": "a bucket",
    "libtpu": "libtpu, for `sammi compile`",
    "checkout": "the repository, and more time than a test has",
    "values": "values in the place of capital letters",
}
FENCE = re.compile(r"^( *)```(\w*) ?([^\n]*)\n(.*?)^ *```$", re.M | re.S)
COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:sammi|pip|make|python|train\.py|eval\.py|curl|hf) (?=\S)(?!\w+:)", re.M
)


def blocks(page, language):
    """(what stands behind the language, text) of the page's blocks in a language."""
    found = [match.groups() for match in FENCE.finditer((ROOT / page).read_text())]
    return [
        (info, re.sub(rf"^{indent}", "", body, flags=re.M))
        for indent, name, info, body in found
        if name == language
    ]


def script(page, *infos):
    return "".join(body for info, body in blocks(page, "sh") if info in infos)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_commands_says_whether_it_runs(page):
    unmarked = [body for _, body in blocks(page, "") if COMMAND.search(body)]
    assert not unmarked, f'begin with ```sh, ```sh slow or ```sh needs="...": {unmarked[0]}'
    for info, body in blocks(page, "sh"):
        needs = re.fullmatch(r'needs="([\w, ]+)"', info)
        assert info in ("", "slow") or needs, f"{page}: {info} of {body}"
        assert set(needs[1].split(", ") if needs else ()) <= set(NEEDS), f"{page}: {info}"


def run(command, folder):
    """A command in a folder, with this checkout's package and one CPU device."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "XLA_FLAGS": flags}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def run_commands(page, folder, *infos):
    run(["bash", "-euo", "pipefail", "-c", script(page, *infos)], folder)


@pytest.mark.parametrize("page", [page for page in PAGES if script(page, "")])
def test_commands_run(page, tmp_path):
    run_commands(page, tmp_path, "")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if script(page, "slow")])
def test_slow_commands_run(page, tmp_path):
    run_commands(page, tmp_path, "", "slow")


@pytest.mark.parametrize("page", [pytest.param("README.md", marks=pytest.mark.slow), *PYTHON_PAGES])
def test_python_runs(page, tmp_path):
    if page == "docs/index.md":  # its Python reads what its commands have drawn
        (draw,) = re.findall(r"^sammi datasets draw .*$", script(page, "slow"), re.M)
        run(["bash", "-c", draw], tmp_path)
    code = "".join(body for _, body in blocks(page, "python"))
    assert "sammi_jax.load(" in code
    run([sys.executable, "-c", code], tmp_path)
