"""`sammi doctor`, and the one line for devices that JAX cannot start."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

from sammi_jax.cli.main import main
from sammi_jax.config.extras import EXTRAS, installed_version
from sammi_jax.doctor import self_test, system
from sammi_jax.errors import SammiError
from sammi_jax.parallel.backend import backend_errors

ROOT = Path(__file__).resolve().parent.parent
PASSED = {**self_test.not_run(None), "passed": True, "miou": 0.9, "first_seconds": 1, "seconds": 1}


@pytest.fixture
def no_self_test(monkeypatch):
    monkeypatch.setattr(self_test, "self_test", lambda: PASSED)


def doctor(capsys, *options):
    code = main(["doctor", *options])
    return code, capsys.readouterr().out


# --- the report ---


def test_it_passes_here(capsys):
    code, out = doctor(capsys, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["self_test"]["passed"]
    assert report["self_test"]["miou"] > self_test.MIN_MIOU
    assert report["packages"]["jax"] == jax.__version__
    assert len(report["devices"]["found"]) == jax.local_device_count()
    assert report["devices"]["problem"] is None
    assert report["matmul"]["computed_in"] == "float32"
    assert report["matmul"]["expected"]
    assert report["host"]["cores"] >= 1
    assert report["host"]["memory"] > report["host"]["available"] > 2**20
    assert report["environment"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert "PATH" not in report["environment"]
    assert {feature["name"] for feature in report["features"]} == set(EXTRAS)


def test_the_text_says_the_same(capsys, no_self_test, monkeypatch):
    monkeypatch.setattr(
        "sammi_jax.config.extras.installed_version",
        lambda name: None if name == "torch" else "1.2.3",
    )
    code, out = doctor(capsys)
    assert code == 0
    for words in (
        "jax ",
        "XLA_FLAGS=",
        "CPU cores, ",
        "cpu:7 cpu",
        "float32 products are computed in",
    ):
        assert words in out
    assert re.search(r"convert +missing: pip install 'sammi_jax\[convert\]' +open PyTorch", out)
    assert re.search(r"tensorboard +tensorboardX 1.2.3 ", out)
    assert "self-test    passed: mIoU 0.900" in out


class Blind:
    """A model that sees the first class everywhere."""

    def segment(self, image, names):
        self.labels = np.zeros(image.shape[:2], np.int32)
        return self


def test_wrong_labels_fail(capsys, monkeypatch):
    monkeypatch.setattr(self_test, "load", lambda _: Blind())
    code, out = doctor(capsys)
    assert code == 1
    assert re.search(r"self-test    FAILED: mIoU 0\.0\d\d of generated scenes, at least 0\.75", out)


def test_an_error_is_told_in_one_line(capsys, monkeypatch):
    def fail(_):
        raise SammiError("the file is gone\nfor good")

    monkeypatch.setattr(self_test, "load", fail)
    code, out = doctor(capsys)
    assert code == 1
    assert out.endswith("\nself-test    FAILED: SammiError: the file is gone for good\n")


# --- its parts ---


def test_compilation_cache(tmp_path):
    folder = tmp_path / "cache"
    assert system.compilation_cache(str(folder)) == {
        "path": str(folder), "files": 0, "bytes": 0, "writable": True,
    }  # fmt: skip
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"123")
    (folder / "deep" / "b").write_bytes(b"4567")
    found = system.compilation_cache(str(folder))
    assert (found["files"], found["bytes"], found["writable"]) == (2, 7, True)
    assert system.compilation_cache(str(folder / "a" / "x"))["writable"] is False
    assert system.compilation_cache("gs://bucket/x")["bytes"] is None
    assert system.compilation_cache(None)["path"] is None


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ((None, None, None, None), "set JAX_COMPILATION_CACHE_DIR"),
        (("gs://b", None, None, None), "gs://b, not a local folder"),
        (("/c", 3, 2**30, True), "/c, 3 files, 1.0 GiB, writable"),
        (("/c", 0, 0, False), "NOT WRITABLE"),
    ],
)
def test_compilation_cache_as_text(capsys, no_self_test, monkeypatch, cache, words):
    found = dict(zip(("path", "files", "bytes", "writable"), cache, strict=True))
    monkeypatch.setattr(system, "compilation_cache", lambda _: found)
    (line,) = [line for line in doctor(capsys)[1].splitlines() if line.startswith("cache ")]
    assert words in line


@pytest.mark.parametrize(
    ("bits", "name"), [(23, "float32"), (10, "tensorfloat32"), (7, "bfloat16")]
)
def test_precision_is_measured(capsys, no_self_test, monkeypatch, bits, name):
    """Factors that are rounded as an accelerator would; on a CPU nobody expects that."""
    exact = jnp.matmul

    def rounded(*factors):
        return exact(*(jax.lax.reduce_precision(x, 8, bits) for x in factors))

    monkeypatch.setattr(system.jnp, "matmul", rounded)
    found = system.matmul_precision()
    assert found["computed_in"] == name
    assert found["expected"] == (name == "float32")
    out = doctor(capsys)[1]
    assert ("WHICH IS LESS THAN EXPECTED; JAX_DEFAULT_MATMUL_PRECISION" in out) == (bits < 23)


def test_a_driver_that_is_not_used(capsys, no_self_test, monkeypatch, tmp_path):
    assert system.devices()["hint"] is None
    monkeypatch.setattr(system, "_NVIDIA_DRIVER", tmp_path)
    assert 'JAX computes on the CPU; pip install "jax[cuda13]"' in doctor(capsys)[1]


def test_extras_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        name: [Requirement(text).name for text in texts]
        for name, texts in project["optional-dependencies"].items()
        if name != "dev"
    }
    assert {name: [extra.package] for name, extra in EXTRAS.items()} == declared
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-package") is None


def test_extras_that_messages_name_exist():
    files = [*(ROOT / "sammi_jax").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {
        extra for path in files for extra in re.findall(r"sammi_jax\[([a-z]+)\]", path.read_text())
    }
    assert named
    assert named <= set(EXTRAS)


# --- devices that are not there ---


def without_devices(platform, *arguments):
    """A command in a process where JAX cannot start that platform."""
    variables = {**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "sammi_jax", *arguments],
        cwd=ROOT, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


SEGMENT = ("segment", "docs/images/demo.png", "--classes", "red thing", "--model", "openshapes")


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("rocm", "install JAX's ROCm plugin (and AMD's driver)"),
        ("cuda", 'pip install "jax[cuda13]" (and NVIDIA\'s driver)'),
        ("abacus", "in the place of abacus name one of cpu, cuda, gpu, rocm, tpu"),
    ],
)
def test_segment_says_it_in_one_line(tmp_path, platform, words):
    done = without_devices(platform, *SEGMENT, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sammi: error: JAX_PLATFORMS={platform}: JAX cannot use it here: ")
    assert words in line
    assert line.endswith("or unset JAX_PLATFORMS to use what this machine has")
    assert not (tmp_path / "out").exists()


def test_train_says_it_in_one_line(tmp_path):
    config = ("--config", "openshapes_catseg", "--workdir", str(tmp_path / "run"))
    done = without_devices("rocm", "train", *config)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sammi train: JAX_PLATFORMS=rocm: JAX cannot use it here: ")


def test_doctor_says_it_and_tells_the_rest():
    done = without_devices("rocm", "doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    (line,) = [line for line in done.stdout.splitlines() if "JAX cannot use it here" in line]
    assert line.startswith("devices      none: JAX_PLATFORMS=rocm: ")
    assert f"jax {jax.__version__}" in done.stdout
    assert done.stdout.endswith("self-test    FAILED: there are no devices\n")
    assert json.loads(without_devices("rocm", "doctor", "--json").stdout)["matmul"] is None


NO_LIBTPU = (
    "Unable to initialize backend 'tpu': INTERNAL: no libtpu.so. (set JAX_PLATFORMS='' to "
    "automatically choose an available backend)"
)
BROKEN = (
    "Unable to initialize backend 'cuda': no version\nmore (you may need to uninstall the failing "
    "plugin package, or set JAX_PLATFORMS=cpu to skip this backend.)"
)


@pytest.mark.parametrize(
    ("asked", "error", "line"),
    [
        (
            "cuda",
            AssertionError(),
            "JAX_PLATFORMS=cuda: JAX cannot use it here: it has no plugin for it; pip install "
            '"jax[cuda13]" (and NVIDIA\'s driver); or unset JAX_PLATFORMS to use what this '
            "machine has",
        ),
        (
            "tpu,cpu",
            RuntimeError(NO_LIBTPU),
            "JAX_PLATFORMS=tpu,cpu: JAX cannot use it here: INTERNAL: no libtpu.so; pip install "
            "'sammi_jax[tpu]' (on a machine with TPUs); or unset JAX_PLATFORMS to use what this "
            "machine has",
        ),
        (
            "",
            RuntimeError(BROKEN),
            "JAX cannot start its devices: no version; JAX_PLATFORMS=cpu does without them",
        ),
    ],
)
def test_the_line_for_what_was_asked(monkeypatch, asked, error, line):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", asked)
    with pytest.raises(SammiError) as raised, backend_errors():
        raise error
    assert str(raised.value) == line


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^else$"), backend_errors():
        raise RuntimeError("else")
