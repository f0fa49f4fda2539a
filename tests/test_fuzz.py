"""Hostile input to every reader: it is read, or refused with one line that names it.

What must hold of every case stands in `tests.fuzz.guard`. A failure of the slow test is repeated by
the command that its message shows.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.guard import ADDRESS_BYTES, Fault, check
from tests.fuzz.run import run_cases
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
FAST_CASES = 8
SEED = int(os.environ.get("FUZZ_SEED", "0"))
HOURS = 4  # only a reader that hangs outside Python takes so long


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_few_cases(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a canary would be put here
    assert run_cases(TARGETS[name], FAST_CASES, first_seed=0) >= FAST_CASES


def test_the_slow_suite_is_large_enough():
    assert sum(target.slow_cases for target in TARGETS.values()) >= 100_000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_many_cases(name, tmp_path):
    """In a process of its own, which a case may end."""
    keep = tmp_path / f"{name}.pickle"
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--seed", str(SEED)]
    done = subprocess.run(
        [*command, "--keep", str(keep)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=HOURS * 3600,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        kept = ROOT / ".pytest_cache" / "fuzz" / keep.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(keep, kept)
        pytest.fail(
            f"exit code {done.returncode}; again: {' '.join(command)}; the last case: "
            f"python -m tests.fuzz.run {name} --again {kept}\n{done.stdout[-6000:]}"
        )
    assert f"{name}: {TARGETS[name].slow_cases} cases" in done.stdout


# --- the guard itself ---


def _raise(error):
    raise error


def _allocate():
    bytearray(2 * ADDRESS_BYTES)


def _swallow():
    from sammi_jax.errors import reading

    with reading("a.png", "export it again"):
        _allocate()


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda: _raise(KeyError("x")), "KeyError"),
        (lambda: os.system("true"), "what only code does"),
        (lambda: Path("canary").touch(), "what only code does"),
        (_allocate, "MemoryError"),
        (_swallow, "asked for more memory"),
    ],
)
def test_the_guard_sees_what_must_not_be(read, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Fault, match=words):
        check(read, "a.png")


def test_the_guard_reads_messages():
    from sammi_jax.errors import SammiError

    assert isinstance(check(lambda: _raise(SammiError("a.png: bad")), "a.png"), SammiError)
    with pytest.raises(Fault, match=r"does not name a\.png"):
        check(lambda: _raise(SammiError("b.png: bad")), "a.png")
    error = SammiError("a.png: bad")
    error.args = ("a.png: \x1b[31m",)
    with pytest.raises(Fault, match="not one printable line"):
        check(lambda: _raise(error), "a.png")
