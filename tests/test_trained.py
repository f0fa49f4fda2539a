"""Checkpoints of a run become model folders."""

import json
import os
import shutil

import pytest

from sammi_jax.cli.main import main
from sammi_jax.config.experiment import CaptionConfig, TrainConfig
from sammi_jax.config.files import read_run_config
from sammi_jax.config.model import ClipConfig, ClipTextConfig, ClipVisionConfig
from sammi_jax.training.loop import train
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.model_folder import read_model

CONFIG = TrainConfig(
    task=CaptionConfig(
        model=ClipConfig(
            ClipVisionConfig(image_size=48, patch_size=16, width=16, num_layers=2, num_heads=2),
            ClipTextConfig(vocab_size=30, context_length=12, width=16, num_layers=1, num_heads=2),
            embed_dim=16,
        )
    ),
    steps=2,
    batch_size=8,
    checkpoint_every=1,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps with a checkpoint after each; tests only read it."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(make_task(CONFIG), CONFIG, workdir)
    return workdir


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_a_run_or_one_of_its_checkpoints(tmp_path, run, capsys):
    assert main(["convert", "clip", str(run), str(tmp_path / "newest")]) == 0
    assert "from the checkpoint after step 2" in capsys.readouterr().out
    assert weights(tmp_path / "newest") == weights(run / "model")
    assert main(["convert", "clip", str(run / "checkpoints/1"), str(tmp_path / "first")]) == 0
    assert weights(tmp_path / "first") != weights(run / "model")
    assert read_model(tmp_path / "first").tokenizer_path is not None
    assert read_run_config(run) == CONFIG


def _damage(run):
    for file in (run / "checkpoints/2/state/d").iterdir():
        os.truncate(file, file.stat().st_size // 2)


def _other_kind(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"kind": "nothing"}))


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (["sam", ""], None, "trains a clip; use: sammi convert clip SRC DST"),
        (["clip", "checkpoints/7"], None, "no such checkpoint; there are 1, 2"),
        (["clip", ""], _damage, "checkpoints/2: damaged"),
        (["clip", ""], _other_kind, "not the configuration of a training run"),
        (["clip", ""], lambda run: (run / "config.json").unlink(), "config.json"),
    ],
)
def test_what_cannot_be_converted(tmp_path, run, capsys, arguments, change, message):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    if change is not None:
        change(copy)
    kind, step = arguments
    assert main(["convert", kind, str(copy / step), str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert not (tmp_path / "model").exists()


def test_options_that_do_not_go_with_a_run(tmp_path, run):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "clip", str(run), str(tmp_path / "model"), "--dtype", "bfloat16"])
