"""The site of the documentation builds without a warning: `make docs`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages |= {"commands", "contributing", "changelog", "benchmarks"}
    assert pages <= {path.stem for path in site.glob("*.html")}


def test_the_reference_is_generated(site):
    assert "sammi datasets draw" in (site / "commands.html").read_text()
    reference = (site / "api.html").read_text()
    for words in ("Segment one image, or each of a list", "connected_components", "zero-shot"):
        assert words in reference, words


def test_nothing_is_loaded_from_elsewhere(site):
    page = (site / "index.html").read_text()
    assert "fonts.googleapis" not in page
    assert 'src="http' not in page
