"""Pieces of a large array: the same values and derivatives as the whole."""

import contextlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sammi_jax
from sammi_jax.config.model import AggregatorConfig
from sammi_jax.errors import SammiError
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.layers import pieces
from sammi_jax.layers.init import Keys
from sammi_jax.layers.pieces import in_pieces
from sammi_jax.models import aggregator as aggregator_module
from sammi_jax.models.aggregator import Aggregator
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.sammi import Sammi
from sammi_jax.weights.params import flat_params
from tests.parity import assert_parity
from tests.test_aggregator import CONFIG, _random, _random_inputs
from tests.test_sammi import CATSEG


@pytest.fixture
def no_cache(monkeypatch):
    """As if a CPU's cache held nothing, so that small arrays are cut."""
    monkeypatch.setattr(pieces, "CACHE", 0)


def shapes_seen(count, most, axis=1):
    """The slices that a function is given at once."""
    seen = []

    def function(x):
        seen.append(x.shape[axis])
        return x

    shape = [2, 3, 4]
    shape[axis] = count
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    out = jax.jit(lambda x: in_pieces(function, [x], axes=[axis], most=most))(x)
    np.testing.assert_array_equal(out, x)
    return set(seen)


@pytest.mark.parametrize(
    ("count", "most", "size"), [(12, 4, 4), (10, 4, 2), (9, 4, 3), (7, 4, 1), (3, 4, 3)]
)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pieces_divide_the_slices(no_cache, count, most, size, axis):
    """Both forms are traced: the whole, which other platforms run, and the pieces."""
    assert shapes_seen(count, most, axis) == {count, size}


def test_what_fits_the_cache_is_not_cut():
    assert shapes_seen(12, 4) == {12}


@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_derivatives(no_cache, rng, recompute):
    """Of several arrays with the slices along different axes, and of what is closed over."""
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), "f")  # noqa: E731
    x, y, kernel = normal(2, 6, 3), normal(6, 5), normal(3, 5)

    def loss(cut, x, y, kernel):
        def function(x, y):
            return jnp.tanh(x @ kernel) * y[None]

        out = function(x, y)
        if cut:
            out = in_pieces(function, [x, y], axes=[1, 0], most=2, recompute=recompute)
        return jnp.sum(jnp.square(out)), out

    run = jax.jit(jax.value_and_grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
    ours, reference = (run(cut, x, y, kernel) for cut in (True, False))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert_parity(a, b, 1e-6, "pieces")


@pytest.mark.parametrize(
    ("pooling", "remat"),
    [
        pytest.param(1, "none", marks=pytest.mark.slow),
        pytest.param(2, "none", marks=pytest.mark.slow),
        (2, "full"),
    ],
)
def test_aggregation_in_pieces(monkeypatch, rng, pooling, remat):
    """Six classes, four at most at once: logits and gradients of the whole."""
    graphdef, state = nnx.split(_random(lambda: Aggregator(CONFIG, 12, rngs=nnx.Rngs(0)), rng))
    dense, text, guidance = _random_inputs(rng, classes=6)
    cost = jnp.asarray(rng.normal(size=(2, 8, 8, 6, 2)), "f")

    def logits(state):
        texts = ClassTexts(text, jnp.ones(6, bool))
        return nnx.merge(graphdef, state)(cost, texts, dense, guidance, pooling, remat)

    def loss(state):
        return jnp.mean(jnp.square(logits(state)))

    # Whole functions anew: JAX keeps the programs of those that it has seen.
    run = lambda: jax.jit(lambda s: (logits(s), jax.grad(loss)(s)))(state)  # noqa: E731
    whole = run()
    monkeypatch.setattr(pieces, "CACHE", 0)
    sizes = []
    cut = pieces.in_pieces

    def watched(function, xs, axes, most, recompute):
        assert recompute == (remat == "full")
        sizes.append((xs[0].shape[axes[0]], most))
        return cut(function, xs, axes, most, recompute=recompute)

    monkeypatch.setattr(aggregator_module, "in_pieces", watched)
    ours = run()
    assert set(sizes) == {(6, aggregator_module.CLASSES)}
    assert_parity(ours[0], whole[0], 1e-6, "logits in pieces")
    for a, b in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(whole[1]), strict=True):
        if np.abs(b).max() < 1e-10:  # zero but for rounding: a key's bias
            assert np.abs(a).max() < 1e-10
        else:
            assert_parity(a, b, 1e-5, "gradient in pieces")


def test_what_recomputes_keeps_no_stacks(no_cache):
    """The backward pass holds what one piece needs, not what all do."""

    def temporaries(recompute):
        def function(x):
            for _ in range(4):
                x = jnp.sin(jnp.concatenate([x] * 8, axis=1)).reshape(x.shape[0], 8, -1).sum(axis=1)
            return x

        def loss(x):
            return jnp.sum(in_pieces(function, [x], axes=[0], most=1, recompute=recompute))

        compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros((64, 4096))).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(True) < 0.2 * temporaries(False)


def test_the_published_sizes_are_cut():
    """20 classes of the published size are more than the cache takes."""
    config = AggregatorConfig()
    maps = 20 * config.grid_size**2 * config.hidden_dim * 4
    assert maps > pieces.CACHE


def test_a_number_that_is_not_known_is_not_cut(no_cache):
    """Programs for any number of classes are exported (`sammi_jax.export.programs`)."""
    (count,) = jax.export.symbolic_shape("t")
    x = jax.ShapeDtypeStruct((2, count, 3), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: in_pieces(jnp.tanh, [x], axes=[1], most=4)))(x)
    values = np.linspace(-1, 1, 30, dtype="f").reshape(2, 5, 3)
    np.testing.assert_allclose(exported.call(values), np.tanh(values), rtol=1e-6)


def test_short_of_memory_other_platforms_cut_as_well(no_cache):
    """Lowered for a GPU: a loop over the pieces instead of the whole."""

    def loops(inside):
        run = jax.jit(lambda x: in_pieces(jnp.tanh, [x], axes=[0], most=2))
        with inside():
            found = jax.export.export(run, platforms=["cuda"])(jnp.zeros((6, 4)))
        return "stablehlo.while" in found.mlir_module()

    assert loops(pieces.cut_everywhere)
    assert not loops(contextlib.nullcontext)  # and it ends with the block


def test_memory_within_a_budget(rng):
    """On a CPU: the same labels, or one line that says what it takes."""
    picture = rng.integers(0, 256, (40, 50, 3), np.uint8)
    names, texts = ["a", "b", "c"], rng.normal(size=(3, CATSEG.clip.embed_dim))
    params = flat_params(Sammi(CATSEG, rngs=Keys(0)))
    free, bounded, short = (
        Segmenter(CATSEG, params, lambda: pytest.fail("no text is read"), memory_gib=gib)
        for gib in (None, 2.0, 0.0001)
    )
    bounded.check_memory(len(names))
    ours, reference = (
        model.segment(picture, names, text_embeddings=texts).labels for model in (bounded, free)
    )
    np.testing.assert_array_equal(ours, reference)
    with pytest.raises(SammiError, match=r"0.0001 GiB of memory: this model needs 0\.\d\d for 8"):
        short.check_memory(len(names))
    with pytest.raises(SammiError, match="memory_gib 0: give more than 0"):
        sammi_jax.load(memory_gib=0.0)
