"""Model folders as Hugging Face checkpoints: transformers computes the same with them."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from sammi_jax.config.model import CLIP_SIZES, SAM_SIZES
from sammi_jax.convert.api import convert
from sammi_jax.convert.huggingface import write_checkpoint
from sammi_jax.data.openshapes import build_tokenizer, get_view
from sammi_jax.errors import SammiError
from sammi_jax.inference.towers import load_clip, load_sam
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import read_model, write_model
from tests.parity import assert_parity

CONFIGS = {"clip": CLIP_SIZES["openshapes"], "sam": SAM_SIZES["openshapes"]}
TORCH = {"clip": transformers.CLIPModel, "sam": transformers.SamModel}


def make_folder(kind, folder, rng):
    """A model folder in which every parameter is random."""
    params = {
        path: 0.3 * rng.normal(size=want.shape).astype("f")
        for path, want in expected_params(CONFIGS[kind]).items()
    }
    tokenizer = Tokenizer(build_tokenizer()) if kind == "clip" else None
    write_model(folder, kind, CONFIGS[kind], params, source={}, licence="none", tokenizer=tokenizer)
    return folder


@pytest.fixture(params=["clip", "sam"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    rng, top = np.random.default_rng(0), tmp_path_factory.mktemp("models")
    return {kind: make_folder(kind, top / kind, rng) for kind in CONFIGS}


@pytest.fixture
def folder(kind, folders):
    return folders[kind]


def test_conversion_reads_what_was_written(kind, folder, tmp_path):
    convert(kind, write_checkpoint(folder, tmp_path / "hf", "float32"), tmp_path / "back")
    first, second = read_model(folder), read_model(tmp_path / "back")
    assert first.config == second.config
    assert first.params.keys() == second.params.keys()
    for path, value in first.params.items():
        np.testing.assert_array_equal(value, second.params[path], err_msg=path)


def test_float16_rounds_the_weights_and_not_the_fourier_matrix(kind, folder, tmp_path):
    tensors = load_file(write_checkpoint(folder, tmp_path / "hf") / "model.safetensors")
    exact = {key for key, value in tensors.items() if value.dtype == np.float32}
    assert exact == ({"shared_image_embedding.positional_embedding"} if kind == "sam" else set())
    wide = load_file(write_checkpoint(folder, tmp_path / "f32", "float32") / "model.safetensors")
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, wide[key].astype(value.dtype), err_msg=key)


def load_in_torch(kind, checkpoint):
    model, report = TORCH[kind].from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def test_transformers_computes_the_same(kind, folder, tmp_path, rng):
    theirs = load_in_torch(kind, write_checkpoint(folder, tmp_path / "hf", "float32"))
    check_parity(kind, folder, theirs, rng)


def check_parity(kind, folder, theirs, rng):
    if kind == "clip":
        ours = load_clip(folder)
        side = ours.config.vision.image_size
        images = rng.normal(size=(2, side, side, 3)).astype("f")
        ids = ours.tokenize(get_view("os48").class_names[:3])
        with torch.no_grad():
            out = theirs(
                input_ids=torch.tensor(ids), pixel_values=torch.tensor(images).movedim(-1, 1)
            )
        unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
        assert_parity(unit(ours.encode_image(images)), out.image_embeds, name="clip, image")
        assert_parity(unit(ours.encode_text(ids)), out.text_embeds, name="clip, text")
        return
    ours = load_sam(folder)
    side = ours.config.image_size
    image = rng.normal(size=(1, side, side, 3)).astype("f")
    points = rng.uniform(0, side, (1, 3, 2)).astype("f")
    with torch.no_grad():
        out = theirs(
            torch.tensor(image).movedim(-1, 1),
            input_points=torch.tensor(points)[:, :, None],
            input_labels=torch.ones(1, 3, 1, dtype=torch.int32),
        )
    masks, iou = ours.decode(ours.encode_image(image), points, np.ones((1, 3), np.int32))
    assert_parity(masks, out.pred_masks, name="sam, masks")
    assert_parity(iou, out.iou_scores, name="sam, iou")


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n", "Apache-2.0"),
        ("---\nlicense: openrail\n---\n", "openrail"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown: Apache-2.0 if from Meta"),
        ("# A model\n---\nlicense: mit\n---\n", "unknown: Apache-2.0 if from Meta"),
        ("# A model\nlicense: mit\n", "unknown: Apache-2.0 if from Meta"),
    ],
)
def test_a_model_card_names_the_license(card, license, folders, tmp_path):
    checkpoint = write_checkpoint(folders["sam"], tmp_path / "hf")
    (checkpoint / "README.md").write_text(card)
    convert("sam", checkpoint, tmp_path / "back")
    assert read_model(tmp_path / "back").meta["licence"] == license


def test_another_dtype_is_an_error(folders, tmp_path):
    with pytest.raises(SammiError, match="'bfloat16' is none of float16, float32"):
        write_checkpoint(folders["sam"], tmp_path / "hf", "bfloat16")


def test_a_number_too_large_for_float16(folders, tmp_path):
    model = read_model(folders["sam"])
    model.params["image_encoder/neck/norm2/bias"][0] = 1e5
    write_model(tmp_path / "large", "sam", model.config, model.params, source={}, licence="none")
    with pytest.raises(SammiError, match=r"neck.layer_norm2.bias: holds numbers too large"):
        write_checkpoint(tmp_path / "large", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
