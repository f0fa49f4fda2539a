import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.processing_sam import SamProcessor

from sammi_jax.errors import SammiError
from sammi_jax.ops.sam_image import (
    postprocess,
    preprocess,
    resized_shape,
    to_input_coordinates,
    to_original_coordinates,
)
from tests.parity import assert_parity

SIZES = [(480, 640), (641, 427), (75, 1333), (1024, 1024), (1500, 1125), (333, 500)]


@pytest.fixture(scope="module")
def processor():
    return SamImageProcessorPil()


@pytest.mark.parametrize("size", [*SIZES, (1, 5000), (2999, 3000)])
@pytest.mark.parametrize("side", [1024, 127])
def test_resized_shape(processor, size, side):
    # The reference's height of a very wide image is 0, which Pillow then refuses.
    expected = tuple(max(1, length) for length in processor._get_preprocess_shape(size, side))
    assert resized_shape(*size, side) == expected


@pytest.mark.parametrize("shape", [(1024, 683), (500, 1024), (1024, 1024)])
def test_preprocess(processor, rng, shape):
    """At the target size already, so that no resampling is compared."""
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = processor(image, return_tensors="pt")["pixel_values"][0].movedim(0, -1)
    ours = preprocess(jnp.asarray(image), 1024)
    assert_parity(ours, expected, rel_l2=1e-6, name=f"sam preprocess {shape}")
    assert not np.asarray(ours)[shape[0] :].any()
    assert not np.asarray(ours)[:, shape[1] :].any()


def test_preprocess_of_a_too_large_image_raises_an_error():
    with pytest.raises(SammiError, match=r"resize it to \(1024, 768\)"):
        preprocess(jnp.zeros((1200, 900, 3)), 1024)


@pytest.mark.parametrize("size", SIZES)
def test_postprocess(processor, rng, size):
    """Against float64: in float32 torch rounds the coordinates themselves (1e-5 on white noise)."""
    low = 10 * rng.normal(size=(1, 3, 256, 256)).astype("f")
    (expected,) = processor.post_process_masks(
        torch.tensor(low)[None].double(), [size], [resized_shape(*size, 1024)], binarize=False
    )
    ours = postprocess(jnp.asarray(low[0]), size, 1024)
    assert_parity(ours, expected[0], rel_l2=1e-6, name=f"sam postprocess {size}")


def test_postprocess_without_cropping_fails(processor, rng):
    low = 10 * rng.normal(size=(1, 1, 256, 256)).astype("f")
    (expected,) = processor.post_process_masks(
        torch.tensor(low)[None].double(), [(480, 640)], [(1024, 1024)], binarize=False
    )
    with pytest.raises(AssertionError, match="rel_l2"):
        assert_parity(postprocess(jnp.asarray(low[0]), (480, 640), 1024), expected[0])


@pytest.mark.parametrize("size", SIZES)
def test_coordinates(processor, rng, size):
    points = rng.uniform(0, 1, (4, 2)) * (size[1], size[0])
    expected = SamProcessor(processor)._normalize_coordinates(1024, points, size)
    points = jnp.asarray(points, jnp.float32)
    ours = to_input_coordinates(points, size, 1024)
    assert_parity(ours, expected, rel_l2=1e-6, name=f"sam coordinates {size}")
    assert_parity(to_original_coordinates(ours, size, 1024), points, rel_l2=1e-6)
