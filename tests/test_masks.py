import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sammi_jax import functional
from sammi_jax.ops import masks as ops
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.ops.resize import resize
from tests.parity import assert_parity

B, N, H, W, C = 2, 5, 9, 7, 3


def random_masks(rng, share=0.4, shape=(B, N, H, W)):
    masks = rng.random(shape) < share
    masks[0, 1] = False  # an empty one
    masks[1, 2] = True  # a full one
    return masks


@pytest.mark.parametrize("fractional", [False, True])
def test_mask_pool_is_the_weighted_mean(rng, fractional):
    masks, features = random_masks(rng), rng.normal(size=(B, H, W, C)).astype(np.float32)
    if fractional:
        masks = (masks * rng.random(masks.shape)).astype(np.float32)
    expected = np.zeros((B, N, C))
    for b in range(B):
        for n in range(N):
            total = np.zeros(C)
            for y in range(H):
                for x in range(W):
                    total += masks[b, n, y, x] * features[b, y, x]
            expected[b, n] = total / masks[b, n].sum() if masks[b, n].sum() else 0
    pooled = jax.jit(functional.mask_pool)(masks, features)
    assert_parity(pooled, expected, 1e-6, "mask_pool")
    assert not np.any(pooled[0, 1])


@pytest.mark.parametrize("fractional", [False, True])
def test_mask_spread_averages_the_covering_tokens(rng, fractional):
    masks, tokens = random_masks(rng, 0.2), rng.normal(size=(B, N, C)).astype(np.float32)
    if fractional:
        masks = (masks * rng.random(masks.shape)).astype(np.float32)
    expected = np.zeros((B, H, W, C))
    for b in range(B):
        for y in range(H):
            for x in range(W):
                weights = masks[b, :, y, x].astype(float)
                if weights.sum() > 0:
                    expected[b, y, x] = (weights[:, None] * tokens[b]).sum(0) / weights.sum()
    assert (expected == 0).all(axis=-1).any()  # uncovered pixels exist
    assert_parity(jax.jit(ops.mask_spread)(masks, tokens), expected, 1e-6, "mask_spread")


def test_pooling_an_empty_mask_has_a_finite_gradient():
    masks = jnp.zeros((1, 2, 3, 3))
    loss = lambda masks, x: jnp.sum(ops.mask_spread(masks, ops.mask_pool(masks, x)) ** 2)  # noqa: E731
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(masks, jnp.ones((1, 3, 3, 2)))
    assert all(np.isfinite(g).all() for g in gradients)


def test_area_is_a_fraction(rng):
    masks = random_masks(rng)
    area = jax.jit(ops.mask_area)(masks)
    np.testing.assert_allclose(area, masks.sum((2, 3)) / (H * W), rtol=1e-6)
    assert area[1, 2] == 1
    assert area[0, 1] == 0


def test_stability_score_is_sams(rng):
    logits = 2 * rng.normal(size=(B, N, H, W)).astype(np.float32)
    logits[0, 0] = -9  # empty at both thresholds: 0, where SAM divides by zero
    logits[0, 3] = 9
    expected = np.zeros((B, N))
    for b in range(B):
        for n in range(N):
            high, low = logits[b, n] > 1.0, logits[b, n] > -1.0
            expected[b, n] = (high & low).sum() / max((high | low).sum(), 1)
    score = jax.jit(ops.stability_score)(logits, 1.0)
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert (score[0, 0], score[0, 3]) == (0, 1)
    assert 0 < score[1, 1] < 1


def dilate_naive(masks, cells):
    result = np.zeros_like(masks)
    for y in range(masks.shape[-2]):
        for x in range(masks.shape[-1]):
            window = masks[
                ..., max(y - cells, 0) : y + cells + 1, max(x - cells, 0) : x + cells + 1
            ]
            result[..., y, x] = window.max((-2, -1))
    return result


@pytest.mark.parametrize("cells", [0, 1, 3])
def test_dilation_is_a_square_maximum(rng, cells):
    masks = random_masks(rng, 0.1)
    dilate = jax.jit(ops.dilate, static_argnums=1)
    grown = dilate(masks, cells)
    assert grown.dtype == bool
    np.testing.assert_array_equal(grown, dilate_naive(masks, cells))
    values = rng.normal(size=masks.shape).astype(np.float32)  # negative ones at the border too
    np.testing.assert_array_equal(dilate(values, cells), dilate_naive(values, cells))


def test_dilation_of_one_pixel_in_a_corner():
    mask = np.zeros((1, 1, 5, 6), bool)
    mask[0, 0, 0, 5] = True
    grown = np.argwhere(np.asarray(jax.jit(ops.dilate, static_argnums=1)(mask, 1)[0, 0]))
    assert grown.tolist() == [[0, 4], [0, 5], [1, 4], [1, 5]]


def test_boundary_of_hand_made_masks():
    masks = np.zeros((1, 2, 8, 8), bool)
    masks[0, 0, 2:6, 2:6] = True
    boundary = jax.jit(ops.boundary)
    strength = np.asarray(boundary(masks))[0]
    expected = np.zeros((8, 8))
    expected[1:7, 1:7] = 1  # one pixel outside and one inside the square's edge ...
    expected[3:5, 3:5] = 0  # ... but not its middle
    np.testing.assert_array_equal(strength, expected)
    assert not np.any(boundary(np.ones_like(masks)))  # the frame's border is no boundary
    masks[0, 1, :, 0] = True  # a second mask's boundary is added to the first's
    expected[:, :2] = np.maximum(expected[:, :2], 1)
    np.testing.assert_array_equal(boundary(masks)[0], expected)
    np.testing.assert_allclose(jax.jit(ops.boundary)(np.float32(0.25) * masks)[0], 0.25 * expected)


def test_intersections_and_containment(rng):
    masks = random_masks(rng)
    shared, contained = (
        np.asarray(jax.jit(f)(masks)) for f in (ops.intersections, ops.containment)
    )
    for b in range(B):
        for i in range(N):
            for j in range(N):
                both = (masks[b, i] & masks[b, j]).sum()
                smaller = min(masks[b, i].sum(), masks[b, j].sum())
                assert shared[b, i, j] == both
                assert contained[b, i, j] == pytest.approx(both / smaller if smaller else 0)


def test_containment_of_hand_made_masks():
    masks = np.zeros((1, 3, 4, 8), bool)
    masks[0, 0, :, :4] = True
    masks[0, 1, 1:3, 1:3] = True  # inside the first
    masks[0, 2, :2, 3:7] = True  # a quarter of it inside the first
    contained = np.asarray(jax.jit(ops.containment)(masks))[0]
    assert (contained[0, 1], contained[0, 2], contained[1, 2]) == (1, 0.25, 0)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_box_mean_counts_only_pixels_that_exist(rng, size):
    features, radius = rng.normal(size=(B, H, W, C)).astype(np.float32), size // 2
    expected = np.zeros(features.shape)
    for y in range(H):
        for x in range(W):
            window = features[
                :, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1
            ]
            expected[:, y, x] = window.mean((1, 2))
    mean = jax.jit(ops.box_mean, static_argnums=1)(features, size)
    assert_parity(mean, expected, 1e-6, f"box_mean {size}")


@pytest.mark.parametrize("size", [(6, 5), (24, 20), (9, 7), (1, 3)])
def test_sample_region_is_grid_sample(rng, size):
    masks = rng.normal(size=(B, N, H, W)).astype(np.float32)
    boxes = np.array([[0.1, 0.2, 0.55, 0.9], [-0.2, 0.0, 0.7, 1.3]], np.float32)  # one leaves
    grid = np.zeros((B, *size, 2), np.float32)
    for b, (y0, x0, y1, x1) in enumerate(boxes):
        y = y0 + (np.arange(size[0]) + 0.5) / size[0] * (y1 - y0)
        x = x0 + (np.arange(size[1]) + 0.5) / size[1] * (x1 - x0)
        grid[b, ..., 0], grid[b, ..., 1] = 2 * x[None, :] - 1, 2 * y[:, None] - 1
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(masks),
        torch.from_numpy(grid),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    # The boxes are arguments of the compiled function, not constants.
    ours = jax.jit(ops.sample_region, static_argnums=2)(masks, boxes, size)
    assert_parity(ours, expected, 1e-5, f"sample_region {size}")


@pytest.mark.parametrize("size", [(27, 14), (4, 5)])
def test_sample_region_of_the_whole_frame_is_resize(rng, size):
    masks = rng.normal(size=(B, N, H, W)).astype(np.float32)
    whole = np.tile(np.array([0, 0, 1, 1], np.float32), (B, 1))
    ours = jax.jit(ops.sample_region, static_argnums=2)(masks, whole, size)
    expected = jax.jit(lambda x: resize(x[..., None], size)[..., 0])(masks)
    assert_parity(ours, expected, 1e-6, "sample_region whole")


def test_l2_normalize(rng):
    x = rng.normal(size=(4, 6)).astype(np.float32)
    unit = jax.jit(l2_normalize)(x)
    assert_parity(unit, x / np.linalg.norm(x, axis=-1, keepdims=True), 1e-6, "l2_normalize")
    zero = jnp.zeros((1, 3))
    value, gradient = jax.jit(jax.value_and_grad(lambda x: l2_normalize(x).sum()))(zero)
    assert value == 0
    assert np.isfinite(gradient).all()
