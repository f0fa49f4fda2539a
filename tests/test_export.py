"""Exported programs: the same labels as the model's own, for other batches and class lists."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.convert.api import convert
from sammi_jax.data.openshapes import OpenShapes, build_tokenizer
from sammi_jax.export import run_exported
from sammi_jax.export.folder import write_export
from sammi_jax.figures import label_image
from sammi_jax.images import load_image
from sammi_jax.inference.inputs import stack_inputs
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import write_model
from sammi_jax.weights.params import flat_params
from tests.test_sammi import CATSEG, SAMMI

COLORS = ("red", "blue", "green", "yellow", "orange")
NAMES = [f"{color} {thing}" for color in COLORS for thing in ("thing", "bricks")]
SIZES = ((40, 56), (33, 20), (64, 64))


ANY_NUMBER = dataclasses.replace(SAMMI.aggregator, pad_length=0)


def tiny(config, **changes):
    """With a vocabulary that has a tokenizer."""
    text = dataclasses.replace(config.clip.text, vocab_size=30, context_length=12)
    clip = dataclasses.replace(config.clip, text=text)
    return dataclasses.replace(config, clip=clip, templates=("a photo of a {}",), **changes)


# A CAT-Seg with windows, which keeps 8 classes of longer lists, and a SAM-MI with one view.
CONFIGS = {"catseg": tiny(CATSEG), "sammi": tiny(SAMMI, sliding=None, aggregator=ANY_NUMBER)}
LIMITS = {"catseg": [(1, 8), (9, None)], "sammi": [(1, None)]}  # of classes, of the segmenters


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    """A model folder of each kind. No layer is zero, and classes differ by more than rounding."""
    folders = {}
    for kind, config in CONFIGS.items():
        rng = np.random.default_rng(0)
        params = {
            path: np.asarray(value) + 0.1 * rng.normal(size=value.shape).astype("f")
            for path, value in flat_params(model_maker(config)()).items()
        }
        folders[kind] = write_model(
            tmp_path_factory.mktemp("models") / kind, kind, config, params,
            source={"file": "x"}, licence="MIT", tokenizer=Tokenizer(build_tokenizer()),
            dtype="bfloat16",
        )  # fmt: skip
    return folders


@pytest.fixture(scope="module", params=CONFIGS)
def folders(request, model_folders, tmp_path_factory):
    """A model folder, and what `write_export` makes of it."""
    model = model_folders[request.param]
    return model, write_export(model, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def models(folders):
    """The model, and the exported one, both in this process."""
    return sammi_jax.load(folders[0]), run_exported.ExportedModel(folders[1])


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize("num_classes", [1, 3])
def test_labels_are_those_of_the_model(models, num_classes):
    model, exported = models
    for image in images():
        labels = exported.segment(image, NAMES[:num_classes])
        np.testing.assert_array_equal(labels, model.segment(image, NAMES[:num_classes]).labels)
        assert labels.dtype == np.int32
    assert num_classes == 1 or len(np.unique(labels)) > 1


def test_other_numbers_of_images_and_classes(models):
    """Three images, and more classes than this CAT-Seg aggregates at once."""
    (model, exported), num_classes = models, 10
    inputs = stack_inputs([model.prepare(image) for image in images()])
    expected = model.predict_batch(inputs, NAMES[:num_classes])
    features, mask = exported.encode_classes(NAMES[:num_classes])
    arrays = [exported.prepare(image) for image in images()]
    outputs = exported.predict(
        jax.tree.map(lambda *parts: np.concatenate(parts), *arrays), features, mask
    )
    probabilities = np.asarray(outputs["probabilities"])
    np.testing.assert_allclose(
        probabilities[:, :num_classes], expected.probabilities, rtol=0, atol=1e-5
    )
    assert probabilities.shape[:2] == (3, len(mask))
    assert (probabilities[:, num_classes:] == 0).all()
    if expected.proposals is None:
        assert set(outputs) == {"probabilities"}
        return
    for name, field in [
        ("mask_valid", "valid"),
        ("masks", "masks"),
        ("point_valid", "point_valid"),
    ]:
        np.testing.assert_array_equal(outputs[name], getattr(expected.proposals, field))
    for name, field in [("points", "points"), ("mask_quality", "quality")]:
        np.testing.assert_allclose(outputs[name], getattr(expected.proposals, field), atol=1e-5)
    assert np.asarray(outputs["mask_valid"]).any()


def test_the_script_prepares_what_the_package_does(models):
    model, exported = models
    for image in images():
        expected = model.prepare(image)
        for name, array in exported.prepare(image).items():
            want = getattr(expected, name)
            np.testing.assert_array_equal(array, want)
            assert array.dtype == want.dtype
    names = ["red thing, blue thing", "red " * 20 + "thing"]  # synonyms; too long
    with pytest.warns(UserWarning, match="cut because longer"):
        ids = class_tokens(Tokenizer(build_tokenizer()), names, model.config.templates, 12)
    np.testing.assert_array_equal(exported.token_ids(names), ids)


def test_the_script_reads_images_as_the_package_does(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    saved = {
        "turned.png": (Image.fromarray(pixels), {"exif": turned}),
        "gray.png": (Image.fromarray(pixels[..., 0]), {}),
        "palette.png": (Image.fromarray(pixels).quantize(7), {}),
        "wide.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        "unit.tif": (Image.fromarray(pixels[..., 0].astype(np.float32) / 255), {}),
        "byte.tif": (Image.fromarray(pixels[..., 0].astype(np.int32)), {}),
    }
    for name, (image, options) in saved.items():
        image.save(tmp_path / name, **options)
        read = run_exported.read_image(tmp_path / name)
        np.testing.assert_array_equal(read, load_image(tmp_path / name), name)
        assert read.shape == ((9, 6, 3) if name == "turned.png" else (6, 9, 3))
    Image.fromarray(np.full((2, 2), -1, np.float32)).save(tmp_path / "bad.tif")
    with pytest.raises(ValueError, match="scale them"):
        run_exported.read_image(tmp_path / "bad.tif")


@pytest.mark.parametrize("num_classes", [5, 300])
def test_the_script_draws_label_maps_as_the_package_does(rng, num_classes):
    labels = rng.integers(0, num_classes, (8, 9), dtype=np.int32)
    drawn, expected = (
        run_exported.label_image(labels, num_classes),
        label_image(labels, num_classes),
    )
    assert (drawn.mode, drawn.getpalette()) == (expected.mode, expected.getpalette())
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def test_the_manifest_says_what_the_programs_take(folders, models):
    model, folder = folders
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["licence"], manifest["source"]) == ("MIT", {"file": "x"})
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    roles = [program["role"] for program in manifest["programs"]]
    limits = [tuple(program["classes"].values()) for program in manifest["programs"]]
    assert roles == ["text_encoder", *["segmenter"] * (len(roles) - 1)]
    assert limits == [(1, None), *LIMITS[manifest["kind"]]]
    arrays = models[1].prepare(images()[0])
    features, mask = models[1].encode_classes(NAMES[:3])
    for program in manifest["programs"][1:]:
        stated = program["inputs"]["image"]
        assert stated.keys() == arrays.keys()
        for name, array in arrays.items():
            assert stated[name] == {"shape": ["b", *array.shape[1:]], "dtype": str(array.dtype)}
        assert program["inputs"]["text_features"]["shape"] == ["t", *features.shape[1:]]
        assert program["inputs"]["class_mask"] == {"shape": ["t"], "dtype": "bool"}
        outputs = models[1].predict(arrays, features, mask)
        stated = program["outputs"]["probabilities"]["shape"]
        assert stated == ["b", "t", *outputs["probabilities"].shape[2:]]
        assert program["outputs"].keys() == outputs.keys()


# --- errors ---


def test_what_cannot_be_exported(model_folders, tmp_path, capsys, monkeypatch):
    model, out = model_folders["catseg"], tmp_path / "out"

    def fails(*arguments):
        assert main(["export", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    before = sorted(model.iterdir())
    assert "exists already" in fails("--model", model, model)
    assert sorted(model.iterdir()) == before
    assert "'gpu' is unknown; give some of" in fails("--model", model, out, "--platforms", "gpu")
    assert "no platform is named" in fails("--model", model, out, "--platforms", ",")
    assert "no such folder" in fails("--model", tmp_path / "none", out)
    convert("clip", "openshapes_clip", tmp_path / "clip")
    assert "holds a clip model" in fails("--model", tmp_path / "clip", out)
    mute = tmp_path / "mute"
    mute.mkdir()
    for name in ("config.json", "model.safetensors"):
        (mute / name).write_bytes((model / name).read_bytes())
    assert "no tokenizer.json" in fails("--model", mute, out)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert "pip install 'sammi_jax[export]'" in fails("--model", model, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "mute"]


def test_a_failure_leaves_nothing(model_folders, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("sammi_jax.export.folder.export_programs", lambda *_: [])
    monkeypatch.setattr("sammi_jax.export.folder.manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        write_export(model_folders["catseg"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_the_programs_are_not_for(model_folders, tmp_path):
    folder = write_export(model_folders["catseg"], tmp_path / "out", ["cuda", "cuda"])
    assert json.loads((folder / "manifest.json").read_text())["platforms"] == ["cuda"]
    with pytest.raises(ValueError, match="cuda"):
        run_exported.ExportedModel(folder).encode_classes(["red thing"])


# --- the script in a process of its own ---

ALONE = """
import runpy, sys
class Forbid:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "sammi_jax":
            raise ImportError("the script imports sammi_jax")
sys.meta_path.insert(0, Forbid())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(folder, *arguments):
    command = [sys.executable, "-c", ALONE, folder / "run_exported.py", *arguments]
    return subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_script_needs_no_sammi_jax(tmp_path):
    """The bundled model, exported by the command, in a process that cannot import the package."""
    source = OpenShapes("test_unseen", "os48")
    names = source.view.class_names
    image = np.asarray(source[0]["image"])
    Image.fromarray(image).save(tmp_path / "scene.png")
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert main(["export", "--model", "openshapes", str(tmp_path / "exported")]) == 0
    out = tmp_path / "labels.png"
    done = run_alone(
        tmp_path / "exported", tmp_path / "scene.png", "--classes", tmp_path / "names.txt",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = sammi_jax.load("openshapes").segment(image, names).labels
    np.testing.assert_array_equal(np.asarray(Image.open(out)), labels)
    largest = names[np.bincount(labels.ravel()).argmax()]
    assert done.stdout.splitlines()[0].endswith(f"%  {largest}")
    done = run_alone(
        tmp_path / "exported", tmp_path / "scene.png", "--classes", "red cat", "--out", out
    )
    assert done.returncode == 1
    assert done.stderr.startswith("run_exported: error: 'A photo of a red cat in the scene': ")
