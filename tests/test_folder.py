"""Model folders: written whole or not at all, and checked to the last tensor when read."""

import dataclasses
import json
import os
import shutil
import stat

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sammi_jax import files
from sammi_jax.config.fields import to_dict
from sammi_jax.config.model import (
    AggregatorConfig,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    MaskConfig,
    SamConfig,
    SegmenterConfig,
    SlidingConfig,
)
from sammi_jax.errors import SammiError
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights import model_folder
from sammi_jax.weights.kinds import expected_params, model_maker
from sammi_jax.weights.model_folder import describe, is_model_folder, read_model, write_model
from sammi_jax.weights.params import build, flat_params

CLIP = ClipConfig(
    ClipVisionConfig(image_size=16, patch_size=4, width=24, num_layers=3, num_heads=2),
    ClipTextConfig(vocab_size=20, context_length=7, width=16, num_layers=2, num_heads=2),
    embed_dim=16,
)
SAM = SamConfig(
    image_size=32,
    patch_size=4,
    width=16,
    num_layers=4,
    num_heads=2,
    num_stages=2,
    window_size=3,
    out_channels=16,
    decoder_heads=2,
    decoder_mlp_dim=16,
    iou_head_hidden_dim=16,
    mask_in_channels=8,
)
CATSEG = SegmenterConfig(
    CLIP,
    AggregatorConfig(
        hidden_dim=16,
        num_heads=2,
        window_size=2,
        grid_size=4,
        appearance_dim=8,
        text_dim=8,
        decoder_dims=(16, 16),
        decoder_guidance_dims=(8, 8),
        decoder_guidance_proj_dims=(4, 4),
    ),
    crop_size=16,
    clip_size=16,
    taps=(0, 1),
    sliding=SlidingConfig(output_size=32, stride=8),
)
CONFIGS = {
    "clip": CLIP,
    "sam": SAM,
    "catseg": CATSEG,
    "sammi": dataclasses.replace(CATSEG, masks=MaskConfig(sam=SAM)),
}


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: rng.normal(size=want.shape).astype(want.dtype)
        for path, want in expected_params(config).items()
    }


@pytest.fixture(scope="module")
def params():
    return random_params(CLIP)


def write(path, params, kind="clip", config=CLIP, **options):
    return write_model(
        path, kind, config, params, source={"file": "x.pt"}, licence="MIT", **options
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory, params):
    return write(tmp_path_factory.mktemp("original") / "clip", params)


@pytest.fixture
def written(tmp_path, original):
    """A model folder of its own for each test."""
    return shutil.copytree(original, tmp_path / "clip")


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip_of_every_kind(tmp_path, kind):
    params = random_params(CONFIGS[kind])
    path = write(tmp_path / "deep" / kind, params, kind, CONFIGS[kind], initialized=["dmi"])
    found = read_model(path)
    assert (found.kind, found.config) == (kind, CONFIGS[kind])
    assert found.params.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value)
        assert found.params[name].dtype == value.dtype
    assert found.meta["source"] == {"file": "x.pt"}
    assert (found.meta["licence"], found.meta["initialized"]) == ("MIT", ["dmi"])
    assert found.tokenizer_path is None
    again = flat_params(build(model_maker(found.config), found.params))
    assert again.keys() == params.keys()


def test_files_are_plain(written):
    assert sorted(p.name for p in written.iterdir()) == ["config.json", "model.safetensors"]
    meta = json.loads((written / "config.json").read_text())
    assert meta["kind"] == "clip"
    assert meta["format"] == 1
    assert meta["config"] == to_dict(CLIP)
    assert stat.S_IMODE(written.stat().st_mode) == 0o777 & ~umask()
    for path in written.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_bfloat16_leaves_the_fourier_matrix_exact(tmp_path):
    """Rounded, it would move every point by up to a pixel and more."""
    params = random_params(SAM)
    write_model(tmp_path / "half", "sam", SAM, params, source={}, licence="", dtype="bfloat16")
    found = read_model(tmp_path / "half").params
    name, other = "prompt_encoder/position/matrix", "prompt_encoder/no_mask_embed"
    np.testing.assert_array_equal(found[name], params[name])
    assert (found[other] != params[other]).any()


def test_bfloat16_halves_the_file_and_reads_as_float32(tmp_path, written, params):
    path = write(tmp_path / "half", params, dtype="bfloat16")
    size = (written / "model.safetensors").stat().st_size
    assert (path / "model.safetensors").stat().st_size < 0.6 * size
    found = read_model(path).params
    for name, value in params.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(
            found[name], value.astype(ml_dtypes.bfloat16).astype(np.float32)
        )


def test_arrays_of_any_memory_layout(tmp_path, params):
    """safetensors writes the raw memory: a transposed array would come back scrambled."""
    twisted = {name: np.array(value, order="F") for name, value in params.items()}
    found = read_model(write(tmp_path / "clip", twisted)).params
    for name, value in params.items():
        np.testing.assert_array_equal(found[name], value)


def test_parameters_of_a_module_on_the_device(tmp_path, params):
    module = build(model_maker(CLIP), {k: jax.numpy.asarray(v) for k, v in params.items()})
    found = read_model(write(tmp_path / "clip", flat_params(module)))
    for name, value in params.items():
        np.testing.assert_array_equal(found.params[name], value)


class Words(Tokenizer):
    def __init__(self):
        pass

    def save(self, path):
        (path / "tokenizer.json").write_text("{}")


def test_tokenizer_is_stored(tmp_path, params):
    path = write(tmp_path / "clip", params, tokenizer=Words())
    assert read_model(path).tokenizer_path == path / "tokenizer.json"


@pytest.mark.parametrize("step", ["weights", "tokenizer", "rename", "interrupt"])
def test_nothing_is_left_of_a_failed_write(tmp_path, params, monkeypatch, step):
    def fail(*_):
        raise KeyboardInterrupt if step == "interrupt" else OSError("disk full")

    def save_half(tensors, path):
        path.write_bytes(b"half a file")
        fail()

    tokenizer = Words()
    if step in ("weights", "interrupt"):
        monkeypatch.setattr(model_folder, "save_file", save_half)
    elif step == "tokenizer":
        tokenizer.save = fail
    else:
        monkeypatch.setattr(files.os, "rename", fail)
    with pytest.raises(KeyboardInterrupt if step == "interrupt" else OSError):
        write(tmp_path / "clip", params, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_destination_must_be_free(tmp_path, params):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", params)
    with pytest.raises(SammiError, match="exists already"):
        write(tmp_path / "empty", params)
    (tmp_path / "file").write_text("")
    with pytest.raises(SammiError, match="exists already"):
        write(tmp_path / "file", params)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: p.pop("logit_scale"), "missing logit_scale"),
        (lambda p: p.update(extra=np.zeros(2, "f")), "unknown extra"),
        (lambda p: p.update(logit_scale=np.zeros(2, "f")), r"logit_scale has shape \(2,\), not"),
        (lambda p: p.update(logit_scale=np.zeros((), "i4")), "logit_scale is int32, not float32"),
    ],
)
def test_wrong_parameters_are_neither_written_nor_read(tmp_path, written, params, change, match):
    stored = dict(params)
    change(stored)
    with pytest.raises(SammiError, match=match):
        write(tmp_path / "other", stored)
    assert not (tmp_path / "other").exists()
    save_file(stored, written / "model.safetensors")
    refuse(written, match)


def refuse(path, match, **options):
    for read in (read_model, describe):
        with pytest.raises(SammiError, match=match) as error:
            read(path, **options)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 6, 0.3, 0.999])
def test_truncated_weights(written, keep):
    file = written / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    refuse(written, r"model\.safetensors: damaged or cut short")


def test_not_a_model_folder(tmp_path, written):
    refuse(tmp_path / "none", "no such folder; a model folder is made by 'sammi convert'")
    refuse(written / "config.json", "not a folder")
    refuse(tmp_path, "has no config.json")
    (tmp_path / "run").mkdir()
    written.rename(tmp_path / "run" / "model")
    refuse(tmp_path / "run", "is the folder of a training run; give .*/run/model, its model")
    written = (tmp_path / "run" / "model").rename(written)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    refuse(tmp_path, "not a model folder .* convert it first")
    assert not is_model_folder(tmp_path)
    assert is_model_folder(written)
    (tmp_path / "config.json").write_text("{")
    refuse(tmp_path, "not readable as JSON")
    (tmp_path / "config.json").write_text("[]")
    refuse(tmp_path, "expected a JSON object")


def test_another_kind(written):
    refuse(written, "holds a clip model, not catseg or sammi", kinds=("catseg", "sammi"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "format 2, not 1"),
        ({"kind": "dog"}, "kind 'dog' is none of"),
        ({"kind": "sam"}, r"config\.json: vision: no such field"),
        ({"config": None}, r"config\.json: ClipConfig: expected fields"),
        ({"config": {"vision": {"widht": 3}}}, r"vision\.widht: no such field; did you mean width"),
        ({"config": {"embed_dim": "many"}}, "embed_dim: 'many' is not of type int"),
        ({"config": {"vision": {"patch_size": 0}}}, "the configuration makes no model"),
        ({"config": {"embed_dim": 8}}, "does not fit its configuration: .* has shape"),
    ],
)
def test_broken_configuration(written, change, match):
    file = written / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refuse(written, match)


def test_kind_and_masks_must_agree(tmp_path):
    path = write(tmp_path / "m", random_params(CATSEG), "catseg", CATSEG)
    file = path / "config.json"
    file.write_text(file.read_text().replace('"kind": "catseg"', '"kind": "sammi"'))
    refuse(path, "kind sammi does not go with masks = None")


def test_missing_weights(written):
    (written / "model.safetensors").unlink()
    refuse(written, r"model\.safetensors: missing")


def test_reading_keeps_one_copy(written):
    """Float32 weights are handed over as they were read, without a second copy."""
    stored = load_file(written / "model.safetensors")
    assert model_folder._widen(stored["logit_scale"]) is stored["logit_scale"]
