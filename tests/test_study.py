"""`make study` and `make study-real`, from end to end on very little."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.model_folder import write_model
from tests.test_eval_photographs import CONFIG, CONFIG_FILE, data, random_params
from tests.test_sammi import SAMMI
from tests.xla_flags import fast_flags

__all__ = ["data"]  # a fixture
ROOT = Path(__file__).resolve().parent.parent
# What a whole study would take hours for: one variant, a few scenes.
SMALL_STUDY = """
import sys
sys.path.insert(0, "examples")
import study
from dataclasses import replace
study.VARIANTS = {"all": study.PARTS}
study.SMOKE = replace(study.SMOKE, scenes=8, mask_scenes=4)
study.main()
"""


def run(*arguments):
    environment = os.environ | {"XLA_FLAGS": fast_flags()}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check_report(report, *words):
    text = report.read_text()
    for word in words:
        assert word in text
    plots = re.findall(r"\]\((.*\.png)\)", text)
    assert len(plots) == 3
    for plot in plots:
        assert (report.parent / plot).stat().st_size > 1000
    assert "nan" not in text.replace("| nan |", "")  # the purity of no mask
    return text


@pytest.mark.slow
def test_a_small_study(tmp_path):
    report = tmp_path / "study.md"
    options = ("--smoke", "--workdir", tmp_path / "work", "--report", report)
    first = run("-c", SMALL_STUDY, *options)
    assert "all+smagg 0" in first
    text = check_report(report, "hard voting", "true parts", "harmonic mean", "all masks disabled")
    assert "inconclusive (fewer than three seeds)" in text
    report.unlink()
    assert not run("-c", SMALL_STUDY, *options).strip()  # all is done: nothing runs again
    assert report.read_text() == text


@pytest.fixture(scope="module")
def real_models(tmp_path_factory, bpe_file):
    """A CAT-Seg, a SAM-MI and its SAM, of random weights."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.from_file(bpe_file)
    catseg = replace(CONFIG, masks=None)
    for kind, config in (("catseg", catseg), ("sammi", CONFIG), ("sam", SAMMI.masks.sam)):
        write_model(
            folder / kind, kind, config, random_params(config), source={}, licence="none",
            tokenizer=None if kind == "sam" else tokenizer,
        )  # fmt: skip
    return folder


@pytest.mark.slow
def test_the_study_on_photographs(real_models, data, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG_FILE)
    own, models = f"folder:{data / 'own'}", real_models
    run("examples/study_real.py", "--data-dir", data, "--datasets", f"ade20k_150,{own}",
        "--config", config, "--sam", models / "sam", "--mask-images", 2,
        "--model", f"control={models / 'catseg'}", "--model", f"all+smagg={models / 'sammi'}",
        "--workdir", tmp_path / "work")  # fmt: skip
    reports = sorted((tmp_path / "work").glob("*.md"))
    assert len(reports) == 2
    for report in reports:
        text = check_report(report, "mIoU", "hard voting", "all masks disabled")
        assert "harmonic" not in text
        assert "true parts" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["catseg=catseg"], "give NAME[/SEED]=DIR, NAME one of control, "),
        (["control=nowhere"], "nowhere is no model folder"),
        (["control/1=catseg"], "--model is missing for all+smagg/1"),
        ([], "--model is missing for control/0, all+smagg/0"),
    ],
)
def test_wrong_models_are_named(real_models, tmp_path, models, words):
    command = ["examples/study_real.py", "--data-dir", tmp_path, "--sam", real_models / "sam"]
    for model in models:
        name, _, folder = model.partition("=")
        command += ["--model", f"{name}={real_models / folder}"]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
