"""Rules of the aggregator: padding, absent classes, windows, the raw-cost skip."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.model import AggregatorConfig
from sammi_jax.errors import SammiError
from sammi_jax.layers import class_attention, swin
from sammi_jax.models.aggregator import Aggregator
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.cost_map import cost_map
from sammi_jax.ops.windows import window_merge, window_partition
from sammi_jax.weights.params import abstract_params, build, flat_params
from tests.parity import assert_parity, errors

CONFIG = AggregatorConfig(
    hidden_dim=32,
    num_layers=1,
    num_heads=2,
    window_size=4,
    grid_size=8,
    num_templates=2,
    appearance_dim=8,
    text_dim=8,
    decoder_dims=(16, 16),
    decoder_guidance_dims=(6, 5),
    decoder_guidance_proj_dims=(4, 4),
    pad_length=8,
)


def _differ(ours, reference):
    return errors(ours, reference)[0] > 1e-5


def _random(make, rng):
    """A module with random variables, without the compilations of its initialization."""
    shapes = {path: value.shape for path, value in abstract_params(make).items()}
    return build(make, {p: jnp.asarray(0.3 * rng.normal(size=s), "f") for p, s in shapes.items()})


def _random_inputs(rng, classes=3, grid=8):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape).astype("f"))  # noqa: E731
    guidance = (normal(2, 2 * grid, 2 * grid, 6), normal(2, 4 * grid, 4 * grid, 5))
    return normal(2, grid, grid, 12), normal(classes, 2, 12), guidance


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_counted_padding_is_padding_spelt_out(kind, rng):
    """One key counted n times, and absent slots, against CAT-Seg's n copies in a row."""
    make = lambda: class_attention.ClassAggregation(16, 4, 2, kind, rngs=nnx.Rngs(0))  # noqa: E731
    layer = _random(make, rng)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 4, 16)), "f")
    text = jnp.asarray(rng.normal(size=(2, 5, 4)), "f")
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
    real = mask[1]
    run = jax.jit(lambda *inputs: layer(*inputs, 2))
    ours = run(x, text, jnp.asarray(mask), jnp.array([3, 5]))

    def spell_out(image, slots, count):
        token = jnp.broadcast_to(layer.padding_token[...], (1, count, 4, 4, 16))
        guidance = jnp.broadcast_to(layer.padding_guidance[...], (1, count, 4))
        padded = jnp.concatenate([x[image : image + 1, slots], token], axis=1)
        guided = jnp.concatenate([text[image : image + 1, slots], guidance], axis=1)
        everyone, none = jnp.ones((1, 8), bool), jnp.zeros(1, int)
        return run(padded, guided, everyone, none)[0, :-count]

    assert_parity(ours[0], spell_out(0, slice(None), 3), 1e-6, f"padding, {kind}")
    assert_parity(ours[1, real], spell_out(1, real, 5), 1e-6, f"padding and absent, {kind}")
    no_padding = run(x, text, jnp.asarray(mask), jnp.zeros(2, int))
    assert _differ(no_padding[0], ours[0])
    alone = run(x[1:, real], text[1:, real], jnp.ones((1, 3), bool), jnp.zeros(1, int))
    assert_parity(no_padding[1, real], alone[0], 1e-6, f"absent, no padding, {kind}")


def test_gradients_are_finite_for_empty_classes(rng):
    graphdef, state = nnx.split(_random(lambda: Aggregator(CONFIG, 12, rngs=nnx.Rngs(0)), rng))
    dense, text, _ = _random_inputs(rng)
    text = text.at[2].set(0.0)
    mask = jnp.broadcast_to(jnp.array([True, True, False]), (2, 3))

    def loss(state, text, dense):
        model = nnx.merge(graphdef, state)
        x, guidance = model.embed(cost_map(dense, text)), model.project_text(text)[None]
        x = model.layers[0].classes(x, guidance, mask, jnp.array([6, 6]), 2)
        return jnp.mean(jnp.square(x[:, :2]))

    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(state, text, dense)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not np.asarray(grads[1][2]).any()
    assert np.abs(grads[1][:2]).max() > 0
    assert np.abs(grads[0]["layers"][0]["classes"]["padding_token"][...]).max() > 0


def test_cost_skip_adds_the_scaled_cost(rng):
    def make(skip):
        config = replace(CONFIG, num_layers=0, cost_skip=skip)
        return lambda: Aggregator(config, 12, rngs=nnx.Rngs(0))

    params = flat_params(_random(make(False), rng))
    assert set(abstract_params(make(True))) - set(params) == {"skip_scale", "skip_bias"}
    plain = build(make(False), params)
    skip = build(make(True), params | {"skip_scale": jnp.array(10.0), "skip_bias": jnp.array(-5.0)})
    dense, text, guidance = _random_inputs(rng)
    # A ramp from the top to the bottom: one plus or minus two tenths over the two templates.
    rows = np.arange(8.0) / 8
    cost = np.broadcast_to(rows[:, None, None, None] + np.array([1.2, 0.8]), (2, 8, 8, 3, 2))
    mask = jnp.array([True, False, True])

    def run(cost):
        inputs = (cost, ClassTexts(text, mask), dense, guidance, 1)
        return skip(*inputs) - plain(*inputs)

    ours = jax.jit(run)(jnp.asarray(cost, "f"))
    ramp = 10.0 * (1.0 + np.interp((np.arange(32) - 1.5) / 4, np.arange(8), rows)) - 5.0
    expected = ramp[:, None] * np.asarray(mask)[:, None, None]  # absent: -100 in both
    np.testing.assert_allclose(ours, np.broadcast_to(expected, ours.shape), atol=1e-4)


def test_fresh_cost_skip_has_the_stated_values():
    make = lambda: Aggregator(replace(CONFIG, cost_skip=True), 12, rngs=nnx.Rngs(0))  # noqa: E731
    scale, bias = jax.jit(lambda: (make().skip_scale[...], make().skip_bias[...]))()
    assert (float(scale), float(bias)) == (10.0, -5.0)


def test_large_window_is_cut_to_the_map(rng):
    """A window of the map's shorter side or more: that side, and never shifted."""

    def make(window, shifted):
        return lambda: swin.SwinBlock(16, 4, 2, window, shifted=shifted, rngs=nnx.Rngs(0))

    params = flat_params(_random(make(8, False), rng))
    x = jnp.asarray(rng.normal(size=(1, 2, 8, 16, 16)), "f")
    guidance = jnp.asarray(rng.normal(size=(1, 8, 16, 4)), "f")
    run = lambda *a: jax.jit(build(make(*a), params))(x, guidance)  # noqa: E731
    for window in (8, 12):
        np.testing.assert_array_equal(run(window, True), run(8, False))
    assert _differ(run(4, True), run(4, False))


def test_windows(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 6, 12, 5)))
    for shift in (0, 1):
        windows = window_partition(x, 3, shift)
        assert windows.shape == (2, 3, 8, 9, 5)
        np.testing.assert_array_equal(window_merge(windows, (6, 12), shift), x)
    np.testing.assert_array_equal(window_partition(x, 3)[:, :, 1, 3], x[:, :, 1, 3])
    np.testing.assert_array_equal(window_partition(x, 3, 1)[:, :, 7, 8], x[:, :, 0, 0])
    with pytest.raises(SammiError, match="6 x 12 map"):
        window_partition(x, 4)
