"""The small models that the package brings along."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.convert.api import convert
from sammi_jax.data.openshapes import OpenShapes
from sammi_jax.errors import SammiError
from sammi_jax.weights.bundled import DEFAULT, FOLDER, find_model
from sammi_jax.weights.model_folder import describe
from tests.test_huggingface import check_parity, load_in_torch

TOWERS = {"clip": "openshapes_clip", "sam": "openshapes_sam"}
MIB = 2**20


def size_of(name):
    return sum(file.stat().st_size for file in (FOLDER / name).iterdir())


def test_they_are_small():
    assert sum(size_of(name) for name in TOWERS.values()) <= 4 * MIB
    assert size_of(DEFAULT) <= 4 * MIB


def test_a_file_or_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("openshapes") == FOLDER / "openshapes"
    (tmp_path / "openshapes").mkdir()
    assert find_model("openshapes").resolve() == tmp_path / "openshapes"
    (tmp_path / "else").mkdir()
    assert find_model("else/openshapes").parts[0] == "else"
    with pytest.raises(SammiError, match="openshape: no such folder"):
        describe("openshape")


@pytest.mark.parametrize("kind", TOWERS)
def test_transformers_computes_the_same_with_the_trained_weights(kind, tmp_path, rng):
    convert(kind, TOWERS[kind], tmp_path / "model")
    check_parity(kind, tmp_path / "model", load_in_torch(kind, FOLDER / TOWERS[kind]), rng)


@pytest.mark.parametrize(("kind", "name"), [*TOWERS.items(), ("sammi", DEFAULT)])
def test_their_license_is_known(kind, name, tmp_path):
    options = {"dtype": "bfloat16"} if kind == "sammi" else {}
    assert describe(convert(kind, name, tmp_path / "model", **options)).meta["licence"] == (
        "Apache-2.0"
    )
    assert "license: apache-2.0" in (FOLDER / name / "README.md").read_text()


def test_another_dtype_keeps_the_record_of_what_is_not_trained(tmp_path):
    whole = convert("sammi", "openshapes_clip", tmp_path / "whole", sam="openshapes_sam")
    half = convert("sammi", whole, tmp_path / "half", dtype="float16")
    assert "aggregator" in describe(whole).meta["initialized"]
    assert describe(half).meta["initialized"] == describe(whole).meta["initialized"]
    with pytest.raises(SammiError, match="a SAM-MI has its SAM: leave sam out"):
        convert("sammi", whole, tmp_path / "again", sam="openshapes_sam")


def test_the_model_knows_its_scenes():
    """Most pixels of four scenes of seen and unseen classes are right."""
    model, source = sammi_jax.load(DEFAULT), OpenShapes("test_unseen", "os48")
    shares = []
    for index in range(4):
        found = model.segment(np.asarray(source[index]["image"]), source.view.class_names)
        counted = np.asarray(source[index]["label"]) != 255
        shares.append((found.labels == source[index]["label"])[counted].mean())
        assert len(found.masks) >= 3
    assert np.mean(shares) > 0.85


def test_segment_without_a_model_uses_it(tmp_path, capsys):
    source = OpenShapes("test_seen", "os48")
    Image.fromarray(np.asarray(source[0]["image"])).save(tmp_path / "scene.png")
    arguments = ["--classes", ", ".join(source.view.class_names), "--out", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "scene.png"), *arguments]) == 0
    assert "using the bundled model openshapes" in capsys.readouterr().err
    assert (tmp_path / "out" / "scene_overlay.png").is_file()


def test_a_quality_without_masks_is_an_error():
    model = sammi_jax.load(DEFAULT)
    with pytest.raises(SammiError, match="give masks as well"):
        model.segment(np.zeros((96, 96, 3), np.uint8), ["red bricks"], mask_quality=[0.9])


def test_loading_it_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; import sammi_jax; sammi_jax.load('openshapes')"
    subprocess.run([sys.executable, "-c", code], check=True)
