import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.model import DmiConfig
from sammi_jax.models.dmi import Dmi, low_pass
from sammi_jax.weights.params import abstract_params
from tests.parity import assert_parity

B, H, W, N, D, T, P = 2, 4, 6, 5, 8, 3, 2
DIMS = (6, 4)  # channels of F_h1, F_h2
CONFIG = DmiConfig(num_heads=2)


def make(config=CONFIG):
    return Dmi(config, D, DIMS, P, rngs=nnx.Rngs(0))


def randomized(dmi, seed=1):
    """Every parameter drawn anew, the zero-initialized ones too."""
    graphdef, state = nnx.split(dmi)
    leaves, treedef = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))


@pytest.fixture
def batch(rng):
    """Two images; the first mask of the second image is invalid but not empty."""
    valid = np.array([[True, True, False, True, False], [False, True, True, True, True]])
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    coarse = np.repeat(np.repeat(rng.random((B, N, 2 * H, 2 * W)) < 0.08, 2, 2), 2, 3)
    masks = coarse & (rng.random(coarse.shape) < 0.9)
    shares = lambda k: masks.reshape(B, N, masks.shape[2] // k, k, -1, k).mean((3, 5))  # noqa: E731
    return {
        "low": draw(B, H, W, D),
        "high": (draw(B, 2 * H, 2 * W, DIMS[0]), draw(B, 4 * H, 4 * W, DIMS[1])),
        "cost": draw(B, H, W, T, P),
        "text": draw(T, P, D),
        "masks": (shares(2) >= 0.5, masks),
        "cells": shares(4).astype(np.float32),
        "valid": valid,
    }


@jax.jit
def _inject(graphdef_state, batch):
    dmi = nnx.merge(*graphdef_state)
    cost, low, high = dmi(
        batch["cost"],
        batch["low"],
        batch["high"],
        batch["text"],
        batch["masks"][1],
        batch["valid"],
    )
    return low, cost, *high


def inject(dmi, batch):
    """F_l', the cost map, F_h1' and F_h2', compiled."""
    return [np.asarray(x) for x in _inject(nnx.split(dmi), batch)]


def originals(batch):
    return [batch["low"], batch["cost"], *batch["high"]]


def test_an_untrained_dmi_changes_no_bit(batch):
    for ours, original in zip(inject(make(), batch), originals(batch), strict=True):
        np.testing.assert_array_equal(ours, original)


def test_a_trained_dmi_changes_no_bit_where_every_mask_is_invalid(batch):
    dmi = randomized(make())
    batch["valid"][0] = False
    for ours, original in zip(inject(dmi, batch), originals(batch), strict=True):
        np.testing.assert_array_equal(ours[0], original[0])
        assert np.abs(ours[1] - original[1]).max() > 1e-3  # the other image has masks


def test_what_lies_in_invalid_slots_does_not_matter(batch, rng):
    dmi = randomized(make())
    expected = inject(dmi, batch)
    for name in ("cells", "masks"):
        garbage = jax.tree.map(lambda x: rng.random(x.shape) < 0.5, batch[name])
        keep = batch["valid"][..., None, None]
        batch[name] = jax.tree.map(
            lambda x, g: np.where(keep, x, g).astype(x.dtype),  # noqa: B023
            batch[name],
            garbage,
        )
    for ours, reference in zip(inject(dmi, batch), expected, strict=True):
        np.testing.assert_array_equal(ours, reference)


def test_the_order_of_masks_does_not_matter(batch, rng):
    dmi, order = randomized(make()), rng.permutation(N)
    expected = inject(dmi, batch)
    batch["valid"], batch["cells"] = batch["valid"][:, order], batch["cells"][:, order]
    batch["masks"] = tuple(masks[:, order] for masks in batch["masks"])
    for ours, reference in zip(inject(dmi, batch), expected, strict=True):
        assert_parity(ours, reference, 1e-5, "dmi permuted")


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def low_naive(injection, features, cells, valid):
    """docs/method.md section 5, one image, cell by cell."""
    attention, heads = injection.attention, CONFIG.num_heads
    apply = lambda layer, x: x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])  # noqa: E731
    cells = cells[valid].astype(np.float64)
    regions = np.stack(
        [(m[..., None] * features).sum((0, 1)) / m.sum() if m.any() else np.zeros(D) for m in cells]
    )
    key, value = apply(attention.key, regions), apply(attention.value, regions)
    result = np.zeros(features.shape)
    for y in range(H):
        for x in range(W):
            weight = cells[:, y, x]
            intra = weight @ regions / weight.sum() if weight.sum() else np.zeros(D)
            query = apply(attention.query, features[y, x])
            parts = []
            for part in np.split(np.arange(D), heads):
                score = key[:, part] @ query[part] / math.sqrt(len(part))
                parts.append(softmax(score) @ value[:, part])
            inter = apply(attention.out, np.concatenate(parts))
            change = np.concatenate([intra, inter]) @ np.asarray(injection.out.kernel[...])
            result[y, x] = features[y, x] + change
    return result


def test_low_injection_against_plain_numpy(batch):
    dmi = randomized(make())
    low, cost, *_ = inject(dmi, batch)
    assert (batch["cells"].sum(1) == 0).any()  # some cell is not covered
    for b in range(B):
        expected = low_naive(
            dmi.low_injection, batch["low"][b], batch["cells"][b], batch["valid"][b]
        )
        assert_parity(low[b], expected, 1e-5, f"dmi low {b}")
        alpha = np.asarray(dmi.low_injection.alpha[...])
        for t in range(T):
            for p in range(P):
                text = batch["text"][t, p]
                cosine = expected @ text / np.linalg.norm(expected, axis=-1) / np.linalg.norm(text)
                assert_parity(
                    cost[b, ..., t, p],
                    batch["cost"][b, ..., t, p] + alpha[p] * cosine,
                    1e-5,
                    f"dmi cost {b} {t} {p}",
                )


def low_pass_naive(features, masks):
    result = np.zeros(features.shape)
    means = [features[m].mean(0) if m.any() else np.zeros(features.shape[-1]) for m in masks]
    for y in range(features.shape[0]):
        for x in range(features.shape[1]):
            covering = [mean for mean, m in zip(means, masks, strict=True) if m[y, x]]
            box = features[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            result[y, x] = np.mean(covering, axis=0) if covering else box.mean((0, 1))
    return result


def test_low_pass_against_plain_numpy(batch):
    for features, masks in zip(batch["high"], batch["masks"], strict=True):
        covers = masks.any(axis=1)
        assert covers.any()
        assert not covers.all()
        ours = jax.jit(low_pass)(features, masks)
        for b in range(B):
            expected = low_pass_naive(features[b].astype(np.float64), masks[b])
            assert_parity(ours[b], expected, 1e-5, f"low_pass {b}")


def high_naive(injection, features, masks):
    h, w, _ = features.shape
    features = features.astype(np.float64)
    high = features - low_pass_naive(features, masks)
    padded = np.pad(high, ((1, 1), (1, 1), (0, 0)))
    edges = np.zeros((h, w))
    for y in range(h):
        for x in range(w):
            window = masks[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            edges[y, x] = (window.max((1, 2)) & ~window.min((1, 2))).any()
    padded = np.concatenate([padded, padded * np.pad(edges, 1)[..., None]], axis=-1)
    kernel, bias = (np.asarray(x[...]) for x in (injection.conv.kernel, injection.conv.bias))
    result = np.zeros(features.shape)
    for y in range(h):
        for x in range(w):
            hidden = np.einsum("ijc,ijcd->d", padded[y : y + 3, x : x + 3], kernel) + bias
            gelu = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden])
            result[y, x] = features[y, x] + gelu @ np.asarray(injection.out.kernel[...])
    return result


def test_high_injection_against_plain_numpy(batch):
    dmi = randomized(make())
    _, _, *high = inject(dmi, batch)
    for i in range(2):
        for b in range(B):
            masks = batch["masks"][i][b] & batch["valid"][b][:, None, None]
            expected = high_naive(dmi.high_injections[i], batch["high"][i][b], masks)
            assert_parity(high[i][b], expected, 1e-5, f"dmi high {i} {b}")


def test_gradients_reach_the_zero_layers_first_and_then_everything(batch, rng):
    graphdef, state = nnx.split(make())
    targets = [rng.normal(size=x.shape).astype(np.float32) for x in originals(batch)]

    @jax.jit
    def gradient(state):
        def loss(state):
            outputs = _inject((graphdef, state), batch)
            return sum(jnp.sum((x - y) ** 2) for x, y in zip(outputs, targets, strict=True))

        return jax.grad(loss)(state)

    def sizes(gradient):
        flat = nnx.to_flat_state(gradient)
        return {"/".join(map(str, path)): float(np.abs(g[...]).max()) for path, g in flat}

    first = gradient(state)
    zero_layers = {
        "low_injection/alpha",
        "low_injection/out/kernel",
        "high_injections/0/out/kernel",
        "high_injections/1/out/kernel",
    }
    assert {name for name, size in sizes(first).items() if size > 0} == zero_layers
    state = jax.tree.map(lambda p, g: p - 1e-3 * g, state, first)
    second = sizes(gradient(state))
    # A key bias shifts all scores of a query alike: its true gradient is zero.
    assert {name for name, size in second.items() if size > 1e-7} | {
        "low_injection/attention/key/bias"
    } == set(second)


def test_gradients_are_finite_where_no_mask_is_valid(batch):
    dmi = randomized(make())
    batch["valid"][:] = False
    graphdef, state = nnx.split(dmi)
    floats = {name: batch[name] for name in ("low", "high", "cost", "text")}

    def loss(state, floats):
        return sum(jnp.sum(x**2) for x in _inject((graphdef, state), {**batch, **floats}))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, floats)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1]["low"], 2 * batch["low"])


@pytest.mark.parametrize(("low", "high"), [(True, False), (False, True), (False, False)])
def test_a_part_that_is_off_has_no_parameters_and_does_nothing(batch, low, high):
    dmi = randomized(make(DmiConfig(low=low, high=high, num_heads=2)))
    names = abstract_params(lambda: make(DmiConfig(low=low, high=high, num_heads=2)))
    assert any(name.startswith("low_injection/") for name in names) == low
    assert any(name.startswith("high_injections/") for name in names) == high
    changed = [
        bool((ours != original).any())
        for ours, original in zip(inject(dmi, batch), originals(batch), strict=True)
    ]
    assert changed == [low, low, high, high]
