"""CLIP as it is loaded for use: `classify`, and arrays that it does not take."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import sammi_jax
from sammi_jax.convert.api import convert
from sammi_jax.errors import SammiError
from sammi_jax.images import center_square
from sammi_jax.ops.clip_image import CLIP_MEAN, CLIP_STD
from sammi_jax.weights.bundled import find_model

NAMES = ["red thing", "blue waves", "green bricks"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clip"
    convert("clip", "openshapes_clip", folder)
    return sammi_jax.load_clip(folder)


def test_classify_as_transformers(clip, rng):
    image = rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    found = clip.classify(image, NAMES, templates=["a photo of a {}"])
    square = np.asarray(Image.fromarray(image).resize((86, 48), Image.Resampling.BICUBIC))[:, 19:67]
    pixels = torch.from_numpy((square - CLIP_MEAN) / CLIP_STD).permute(2, 0, 1)[None]
    reference = transformers.CLIPModel.from_pretrained(find_model("openshapes_clip")).eval()
    ids = torch.from_numpy(clip.tokenize([f"a photo of a {name}" for name in NAMES])).long()
    with torch.no_grad():
        seen = reference.vision_model(pixels.float()).pooler_output
        text = reference.text_model(ids, ids != 0).pooler_output
        seen, text = reference.visual_projection(seen), reference.text_projection(text)
    seen, text = (torch.nn.functional.normalize(x, dim=-1) for x in (seen, text))
    wanted = torch.softmax(100.0 * seen @ text.T, dim=-1)[0].numpy()
    assert list(found) == NAMES
    np.testing.assert_allclose(list(found.values()), wanted, atol=1e-4)


def test_the_center_square():
    image = np.arange(3 * 60 * 40, dtype=np.uint8).reshape(60, 40, 3)
    np.testing.assert_array_equal(center_square(image, 40), image[10:50])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda clip: clip.encode_text("a cat"), "give token ids"),
        (lambda clip: clip.encode_text(np.zeros((1, 13), np.int32)), r"token_ids \[1, 13\]"),
        (lambda clip: clip.encode_text(np.zeros((1, 12))), "token_ids of float"),
        (lambda clip: clip.encode_text(np.full((1, 12), 99)), "outside 0..29"),
        (lambda clip: clip.encode_image(jnp.zeros((48, 48, 3))), r"images \[48, 48, 3\]"),
        (
            lambda clip: clip.encode_dense(np.zeros((1, 50, 50, 3))),
            "a multiple of the patch size 8",
        ),
        (lambda clip: clip.encode_image(["a.png"]), "images is a list"),
        (lambda clip: clip.classify(None, NAMES), "the image is a NoneType"),
        (lambda clip: clip.classify(np.zeros((4, 4, 3), np.uint8), []), "class list is empty"),
    ],
)
def test_arrays_that_clip_does_not_take(clip, call, words):
    with pytest.raises(SammiError, match=words):
        call(clip)
