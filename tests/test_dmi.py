import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.model import AggregatorConfig, DmiConfig
from sammi_jax.models.dmi import SCALES, Dmi, low_pass
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.weights.params import abstract_params
from tests.parity import assert_parity

B, H, W, N, D, T, P = 2, 4, 6, 5, 8, 3, 2
DIMS = (6, 4)  # channels of F_h1, F_h2
WIDTHS = (8, 6, 5)  # of the embedding and behind both decoder blocks
CONFIG = DmiConfig(num_heads=2, smoothing=False)  # tests/test_smoothing.py
AGGREGATOR = AggregatorConfig(
    hidden_dim=WIDTHS[0], decoder_dims=WIDTHS[1:], decoder_guidance_dims=DIMS, num_templates=P
)


def make(config=CONFIG):
    return Dmi(config, AGGREGATOR, D, rngs=nnx.Rngs(0))


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
    return {
        "low": draw(B, H, W, D),
        "high": (draw(B, 2 * H, 2 * W, DIMS[0]), draw(B, 4 * H, 4 * W, DIMS[1])),
        "cost": draw(B, H, W, T, P),
        "text": draw(T, P, D),
        "masks": coarse & (rng.random(coarse.shape) < 0.9),
        "valid": valid,
        "maps": tuple(
            draw(B, T, k * H, k * W, width) for k, width in zip(SCALES, WIDTHS, strict=True)
        ),
    }


def shares(masks, scale):
    """W^k of masks of four pixels a cell."""
    k = 4 // scale
    blocks = masks.reshape(*masks.shape[:-2], masks.shape[-2] // k, k, -1, k)
    return blocks.mean((-3, -1))


@jax.jit
def _inject(graphdef_state, batch):
    dmi = nnx.merge(*graphdef_state)
    injection, low, high = dmi(
        batch["low"], batch["high"], batch["text"], batch["masks"], batch["valid"]
    )
    evidence = [injection.evidence(i, batch["cost"]) for i in range(len(batch["maps"]))]
    maps = [e.add(x) if e else x for e, x in zip(evidence, batch["maps"], strict=True)]
    return low, *high, *maps


def inject(dmi, batch):
    """F_l', F_h1', F_h2', the embedding and both decoder maps, compiled."""
    return [np.asarray(x) for x in _inject(nnx.split(dmi), batch)]


def originals(batch):
    return [batch["low"], *batch["high"], *batch["maps"]]


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
    garbage = rng.random(batch["masks"].shape) < 0.5
    batch["masks"] = np.where(batch["valid"][..., None, None], batch["masks"], garbage)
    for ours, reference in zip(inject(dmi, batch), expected, strict=True):
        np.testing.assert_array_equal(ours, reference)


def test_the_order_of_masks_does_not_matter(batch, rng):
    dmi, order = randomized(make()), rng.permutation(N)
    expected = inject(dmi, batch)
    batch["valid"], batch["masks"] = batch["valid"][:, order], batch["masks"][:, order]
    for ours, reference in zip(inject(dmi, batch), expected, strict=True):
        assert_parity(ours, reference, 1e-5, "dmi permuted")


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def _apply(layer, x):
    bias = 0.0 if layer.bias is None else np.asarray(layer.bias[...])
    return x @ np.asarray(layer.kernel[...]) + bias


def attend_naive(attention, queries, regions):
    """Attention of each query to all regions."""
    key, value = _apply(attention.key, regions), _apply(attention.value, regions)
    rows = []
    for query in _apply(attention.query, queries):
        parts = []
        for part in np.split(np.arange(D), CONFIG.num_heads):
            score = key[:, part] @ query[part] / math.sqrt(len(part))
            parts.append(softmax(score) @ value[:, part])
        rows.append(np.concatenate(parts))
    return _apply(attention.out, np.array(rows))


def regions_naive(features, cells):
    """R: the mean of the features over each mask, one image."""
    return np.stack(
        [(m[..., None] * features).sum((0, 1)) / m.sum() if m.any() else np.zeros(D) for m in cells]
    )


def spread_naive(weights, values):
    """The mean of the values of the masks that cover each pixel, [h, w, c]."""
    total = np.einsum("nhw,nc->hwc", weights, values)
    weight = weights.sum(0)[..., None]
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def test_low_injection_against_plain_numpy(batch):
    dmi = randomized(make())
    low, *_ = inject(dmi, batch)
    for b in range(B):
        cells = shares(batch["masks"][b][batch["valid"][b]], 1).astype(np.float64)
        assert (cells.sum(0) == 0).any()  # some cell is not covered
        features = batch["low"][b].astype(np.float64)
        regions = regions_naive(features, cells)
        intra = spread_naive(cells, regions).reshape(-1, D)
        inter = attend_naive(dmi.low_injection.attention, features.reshape(-1, D), regions)
        change = _apply(dmi.low_injection.out, np.concatenate([intra, inter], axis=-1))
        assert_parity(low[b], features + change.reshape(H, W, D), 1e-5, f"dmi low {b}")


def evidence_naive(dmi, batch, b, stage):
    """g_k (spread_k(Q) - up_k(S)) of one image, [t, kh, kw, p]."""
    masks = batch["masks"][b][batch["valid"][b]]
    regions = regions_naive(batch["low"][b].astype(np.float64), shares(masks, 1))
    related = regions + _apply(
        dmi.region_context.out, attend_naive(dmi.region_context.attention, regions, regions)
    )
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    scores = np.einsum("nd,tpd->ntp", unit(related), unit(batch["text"].astype(np.float64)))
    weights = shares(masks, SCALES[stage])
    spread = spread_naive(weights, scores.reshape(len(scores), -1))
    spread = spread.reshape(*spread.shape[:2], T, P).transpose(2, 0, 1, 3)
    cost = batch["cost"][b].astype(np.float64).transpose(2, 0, 1, 3)
    rows, columns = (resize_matrix(n, SCALES[stage] * n) for n in (H, W))
    cost = np.einsum("oh,thwp,qw->toqp", rows, cost, columns)
    return np.minimum(weights.sum(0), 1)[None, ..., None] * (spread - cost)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_evidence_against_plain_numpy(batch, stage):
    dmi = randomized(make())
    ours = inject(dmi, batch)[3 + stage]
    kernel = np.asarray(dmi.evidence_convs[stage].kernel[...], np.float64)
    r = kernel.shape[0] // 2
    for b in range(B):
        evidence = evidence_naive(dmi, batch, b, stage)
        padded = np.pad(evidence, ((0, 0), (r, r), (r, r), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[:2], axis=(1, 2))
        change = np.einsum("thwpij,ijpc->thwc", windows, kernel)
        expected = batch["maps"][stage][b] + change
        assert_parity(ours[b], expected, 1e-5, f"dmi evidence {stage} {b}")


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
    levels = (shares(batch["masks"], 2) >= 0.5, batch["masks"])
    for features, masks in zip(batch["high"], levels, strict=True):
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
    _, *high = inject(dmi, batch)[:3]
    used = batch["masks"] & batch["valid"][:, :, None, None]
    levels = (shares(used, 2) >= 0.5, used)
    for i in range(2):
        for b in range(B):
            masks = levels[i][b]
            expected = high_naive(dmi.high_injections[i], batch["high"][i][b], masks)
            assert_parity(high[i][b], expected, 1e-5, f"dmi high {i} {b}")


ZERO_LAYERS = {
    "low_injection/out/kernel",
    "high_injections/0/out/kernel",
    "high_injections/1/out/kernel",
    "evidence_convs/0/kernel",
    "evidence_convs/1/kernel",
    "evidence_convs/2/kernel",
}


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
    assert {name for name, size in sizes(first).items() if size > 0} == ZERO_LAYERS
    state = jax.tree.map(lambda p, g: p - 1e-3 * g, state, first)
    second = gradient(state)
    still = {name for name, size in sizes(second).items() if size < 1e-7}
    # The relation of the regions lies behind its own zero layer and that of the evidence.
    context = {name for name in sizes(second) if name.startswith("region_context/attention")}
    # A key bias shifts all scores of a query alike: its true gradient is zero.
    no_gradient = {f"{part}/attention/key/bias" for part in ("low_injection", "region_context")}
    assert still == context | no_gradient
    state = jax.tree.map(lambda p, g: p - 1e-3 * g, state, second)
    third = sizes(gradient(state))
    assert {name for name, size in third.items() if size < 1e-9} <= no_gradient


def test_every_injection_learns_from_the_masks_at_the_first_step(batch, rng):
    """The first design did not: alpha's gradient at its start was the same with any masks."""
    graphdef, state = nnx.split(make())
    targets = [rng.normal(size=x.shape).astype(np.float32) for x in originals(batch)]

    @jax.jit
    def gradient(masks):
        def loss(state):
            outputs = _inject((graphdef, state), {**batch, "masks": masks})
            return sum(jnp.sum((x - y) ** 2) for x, y in zip(outputs, targets, strict=True))

        return jax.grad(loss)(state)

    flat = lambda tree: {"/".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(tree)}  # noqa: E731
    one, other = flat(gradient(batch["masks"])), flat(gradient(batch["masks"][..., ::-1]))
    for name in ZERO_LAYERS:
        scale = np.abs(one[name]).max()
        assert np.abs(one[name] - other[name]).max() > 0.01 * scale > 0, name


def test_gradients_are_finite_where_no_mask_is_valid(batch):
    dmi = randomized(make())
    batch["valid"][:] = False
    graphdef, state = nnx.split(dmi)
    floats = {name: batch[name] for name in ("low", "high", "cost", "text", "maps")}

    def loss(state, floats):
        return sum(jnp.sum(x**2) for x in _inject((graphdef, state), {**batch, **floats}))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, floats)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients[1]["low"], 2 * batch["low"])


PARTS = {
    "low": ("region_context", "low_injection", "evidence_convs/0"),
    "high": ("high_injections",),
    "decoder": ("region_context", "evidence_convs/1", "evidence_convs/2"),
}


@pytest.mark.parametrize("on", [(), *((part,) for part in PARTS), ("low", "high")])
def test_a_part_that_is_off_has_no_parameters_and_does_nothing(batch, on):
    config = DmiConfig(**{part: part in on for part in PARTS}, smoothing=False, num_heads=2)
    names = abstract_params(lambda: make(config))
    expected = {prefix for part in on for prefix in PARTS[part]}
    assert all(any(name.startswith(prefix) for prefix in expected) for name in names)
    assert all(any(name.startswith(prefix) for name in names) for prefix in expected)
    outputs = zip(inject(randomized(make(config)), batch), originals(batch), strict=True)
    changed = [bool((ours != original).any()) for ours, original in outputs]
    decoder = "decoder" in on
    assert changed == [
        "low" in on, "high" in on, "high" in on, "low" in on, decoder, decoder
    ]  # fmt: skip
