"""Smoothing of the answer within masks, against plain numpy, and its two identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sammi_jax.models.proposals import MaskProposals
from sammi_jax.models.smoothing import (
    ORDINARY,
    SCALE,
    SPREAD,
    Smoothing,
    agreement,
    canvas_logits,
    smooth_logits,
    smooth_probabilities,
)
from sammi_jax.ops.resize import resize_matrix
from tests.parity import assert_parity

B, N, T, H, W = 2, 4, 3, 6, 8  # logits of H x W, masks of twice that


@pytest.fixture
def logits(rng):
    return jnp.asarray(rng.normal(size=(B, T, H, W)), jnp.float32)


@pytest.fixture
def proposals(rng):
    """One mask of each image is invalid but not empty, and some pixels have no mask."""
    masks = np.repeat(np.repeat(rng.random((B, N, H // 2, W // 2)) < 0.3, 4, 2), 4, 3)
    masks &= rng.random(masks.shape) < 0.9
    valid = np.array([[True, True, False, True], [False, True, True, True]])
    quality = rng.random((B, N)).astype("f")
    points = (jnp.zeros((B, 0, 2)), jnp.zeros((B, 0), bool))
    return MaskProposals(*points, jnp.asarray(masks), jnp.asarray(valid), jnp.asarray(quality))


def trained(weights=(0.03, 0.02, -0.05)):
    smoothing = Smoothing()
    smoothing.weights[...] = jnp.asarray(weights)
    return smoothing


def enlarged(maps):
    """Bilinear, twice as large."""
    rows, columns = (resize_matrix(side, 2 * side) for side in maps.shape[-2:])
    return np.einsum("oh,...hw,pw->...op", rows, maps, columns)


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def strength_naive(theta, mask, quality, logits):
    """Strength and mean logits of one mask of an image; shares of the logits' pixels."""
    share = mask.reshape(H, 2, W, 2).mean((1, 3))
    if share.sum() == 0:
        return 0.0, np.zeros(T)
    pixels = np.moveaxis(logits, 0, -1)
    mean = (share[..., None] * pixels).sum((0, 1)) / share.sum()
    q = softmax(pixels)
    mean_q = (share[..., None] * q).sum((0, 1)) / share.sum()
    each = (share * (q**2).sum(-1)).sum() / share.sum()
    agree = (mean_q**2).sum() / each
    trust = np.array([1.0, (quality - ORDINARY) / SPREAD, (agree - ORDINARY) / SPREAD])
    return np.tanh(SCALE * trust @ theta), mean


def test_against_plain_numpy(logits, proposals):
    theta = np.array([0.03, 0.02, -0.05])
    regions = jax.jit(trained(theta))(logits, proposals)
    ours = np.asarray(jax.jit(smooth_logits)(logits, regions))
    for b in range(B):
        expected = enlarged(np.asarray(logits[b], float))
        before = expected.copy()
        change, cover = np.zeros_like(expected), np.zeros(expected.shape[1:])
        for n in range(N):
            if not proposals.valid[b, n]:
                continue
            mask = np.asarray(proposals.masks[b, n])
            strength, mean = strength_naive(
                theta, mask, float(proposals.quality[b, n]), np.asarray(logits[b], float)
            )
            assert strength == pytest.approx(float(regions.strength[b, n]), abs=1e-5)
            change += mask * strength * (mean[:, None, None] - before)
            cover += mask
        expected = before + change / np.maximum(cover, 1)
        assert (cover == 0).any()
        assert (cover > 1).any()
        assert_parity(ours[b], expected, 1e-5, f"smoothing {b}")


def test_untrained_it_changes_no_bit(logits, proposals):
    regions = Smoothing()(logits, proposals)
    np.testing.assert_array_equal(smooth_logits(logits, regions), jnp.asarray(enlarge(logits)))
    p = enlarge(jax.nn.sigmoid(logits))
    np.testing.assert_array_equal(smooth_probabilities(p, regions), p)


def enlarge(maps):
    """As the program does it, in float32."""
    from sammi_jax.models.smoothing import _enlarge

    return _enlarge(jnp.asarray(maps), (2 * H, 2 * W))


def test_without_valid_masks_it_changes_no_bit(logits, proposals):
    nothing = MaskProposals(
        proposals.points,
        proposals.point_valid,
        proposals.masks,
        jnp.zeros((B, N), bool),
        proposals.quality,
    )
    regions = trained((0.5, 0.5, 0.5))(logits, nothing)
    p = enlarge(jax.nn.sigmoid(logits))
    np.testing.assert_array_equal(smooth_logits(logits, regions), enlarge(logits))
    np.testing.assert_array_equal(smooth_probabilities(p, regions), p)


def test_probabilities_and_logits_agree(rng, logits, proposals):
    regions = trained()(logits, proposals)
    fine = enlarge(logits)
    smooth = smooth_probabilities(jax.nn.sigmoid(fine), regions)
    assert_parity(smooth, jax.nn.sigmoid(smooth_logits(fine, regions)), 1e-5, "smoothing, sigmoid")


def test_maps_finer_than_the_masks_keep_their_size(logits, proposals):
    regions = trained()(logits, proposals)
    fine = jnp.asarray(enlarged(enlarged(logits)).astype("f"))
    assert smooth_logits(fine, regions).shape == (B, T, 4 * H, 4 * W)


def test_logits_of_probabilities():
    p = jax.nn.sigmoid(jnp.linspace(-12, 12, 25))
    np.testing.assert_allclose(canvas_logits(p), np.linspace(-12, 12, 25), atol=0.02)
    assert np.isfinite(canvas_logits(jnp.array([0.0, 1.0]))).all()


def test_agreement():
    """Sure and alike: 1; two classes evenly, each sure: one half; an empty mask: 0."""
    logits = np.full((1, 1, 4, 3), -50.0, "f")
    logits[0, 0, [0, 1, 2, 3], [0, 0, 1, 1]] = 50
    masks = np.array([[[[1, 1, 0, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]]], "f")
    np.testing.assert_allclose(
        agreement(jnp.asarray(masks), jnp.asarray(logits)), [[1.0, 0.5, 0.0]], atol=1e-6
    )


def test_all_three_weights_learn_from_the_masks_at_the_first_step(logits, proposals, rng):
    target = jnp.asarray(rng.normal(size=(B, T, 2 * H, 2 * W)), jnp.float32)

    def gradient(masks):
        def loss(theta):
            smoothing = Smoothing()
            smoothing.weights[...] = theta
            given = MaskProposals(
                proposals.points, proposals.point_valid, masks, proposals.valid, proposals.quality
            )
            return jnp.square(smooth_logits(logits, smoothing(logits, given)) - target).sum()

        return np.asarray(jax.grad(loss)(jnp.zeros(3)))

    one, other = gradient(proposals.masks), gradient(proposals.masks[..., ::-1])
    assert (np.abs(one) > 1e-3).all()
    assert (np.abs(one - other) > 1e-3).all()


def test_absent_classes_stay_absent(logits, proposals):
    logits = logits.at[:, 1].set(-100.0)
    smooth = smooth_logits(logits, trained((0.1, 0, 0))(logits, proposals))
    np.testing.assert_allclose(smooth[:, 1], -100.0, atol=1e-4)
