"""`sammi segment` on a tiny model folder: what is written, and every kind of bad input."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.figures import palette
from sammi_jax.inference.result import Segmentation
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import write_model
from tests.test_sammi import SAMMI

TEXT = dataclasses.replace(SAMMI.clip.text, vocab_size=30, context_length=12)
CONFIG = dataclasses.replace(
    SAMMI,
    clip=dataclasses.replace(SAMMI.clip, text=TEXT),
    sliding=None,
    templates=("a photo of a {}",),
)
CLASSES = "red thing, blue waves, green bricks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    params = {
        path: 0.1 * rng.normal(size=want.shape).astype("f")
        for path, want in expected_params(CONFIG).items()
    }
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(build_tokenizer())
    write_model(path, "sammi", CONFIG, params, source={}, licence="", tokenizer=tokenizer)
    return path


@pytest.fixture
def picture(tmp_path, rng):
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return path


def _run(*arguments):
    return main(["segment", *map(str, arguments)])


def test_a_bad_picture_does_not_stop_the_others(folder, picture, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    out = tmp_path / "out"
    assert _run(bad, picture, "--classes", CLASSES, "--model", folder, "--out", out) == 1
    assert f"sammi: error: {bad}: not an image" in capsys.readouterr().err
    written = sorted(path.name for path in out.iterdir())
    assert written == ["picture.json", "picture_labels.png", "picture_overlay.png"]
    summary = json.loads((out / "picture.json").read_text())
    labels = np.asarray(Image.open(out / "picture_labels.png"))
    assert labels.shape == (40, 56)
    assert summary["class_names"] == CLASSES.split(", ")
    for entry in summary["classes"]:
        assert entry["pixels"] == (labels == entry["index"]).sum()
    result = sammi_jax.load(folder).segment(picture, CLASSES.split(", "))
    np.testing.assert_array_equal(result.labels, labels)
    assert result.scores.shape == (3, 40, 56)
    assert result.points.shape == (summary["num_points"], 2)
    assert result.masks.shape == (summary["num_masks"], 40, 56)
    assert ((result.scores >= 0) & (result.scores <= 1)).all()


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (" , ", "the class list is empty"),
        ("red thing, Red  thing", "more than once"),
        ("none.txt", "none.txt: no such file of class names"),
    ],
)
def test_class_lists_that_are_refused(folder, picture, tmp_path, capsys, classes, words):
    out = tmp_path / "out"
    assert _run(picture, "--classes", classes, "--model", folder, "--out", out) == 1
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not out.exists()


def test_two_pictures_of_one_name(folder, picture, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    other = picture.rename(tmp_path / "b" / picture.name)
    code = _run(other, picture, "--classes", CLASSES, "--model", folder, "--out", tmp_path)
    assert code == 1
    assert "would overwrite each other's results" in capsys.readouterr().err


def test_folders_that_are_refused(folder, picture, tmp_path, capsys):
    for checkpoint, words in [(tmp_path / "none", "none"), (tmp_path, "config.json")]:
        assert _run(picture, "--classes", "a", "--model", checkpoint, "--out", tmp_path) == 1
        assert words in capsys.readouterr().err
    no_text = tmp_path / "no_text"
    no_text.mkdir()
    for name in ("config.json", "model.safetensors"):
        (no_text / name).write_bytes((folder / name).read_bytes())
    assert _run(picture, "--classes", "a", "--model", no_text, "--out", tmp_path) == 1
    assert "no tokenizer.json" in capsys.readouterr().err


def test_long_lists_are_written_in_16_bits(tmp_path):
    names = [f"class {i}" for i in range(300)]
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    result = Segmentation(
        np.zeros((15, 20, 3), np.uint8), names, labels, np.zeros((300, 15, 20), "f"),
        np.zeros((0, 2), "f"), np.zeros((0, 15, 20), bool),
    )  # fmt: skip
    result.write(tmp_path, "long")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "long_labels.png")), labels)


def test_palette_colors_differ():
    assert len({tuple(color) for color in palette(847).tolist()}) == 847
