"""On CI a skipped test fails, unless it lacks the photographs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import pytest
from tests.skips import PhotographsMissingError

def test_passes(): pass

def test_without_photographs(): raise PhotographsMissingError("no photographs")

@pytest.mark.skipif(True, reason="marked")
def test_marked(): pass

@pytest.fixture
def something(): pytest.skip("lacks something")

def test_of_a_fixture(something): pass

def test_midway(): pytest.skip("midway")

@pytest.mark.xfail
def test_expected_to_fail(): assert False
"""
FILE = 'import pytest\npytest.importorskip("no_such_module")\ndef test_never_seen(): pass\n'


def outcomes(folder, **environment):
    """The last line of a run of pytest on `TESTS` and `FILE`, and all that it wrote."""
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_file.py").write_text(FILE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.skips",
        "--continue-on-collection-errors",
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "."],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "CI"}
        | environment
        | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()[-1], done.stdout


def test_a_skip_fails_on_ci(tmp_path):
    last, output = outcomes(tmp_path, CI="true")
    assert last.startswith("1 failed, 1 passed, 1 skipped, 1 xfailed, 3 errors in")
    for reason in ("marked", "lacks something", "midway", "could not import 'no_such_module'"):
        assert f"only tests of photographs may be skipped on CI; Skipped: {reason}" in output


@pytest.mark.parametrize("environment", [{}, {"CI": "false"}])
def test_a_skip_is_one_elsewhere(tmp_path, environment):
    last, _ = outcomes(tmp_path, **environment)
    assert last.startswith("1 passed, 5 skipped, 1 xfailed in")
