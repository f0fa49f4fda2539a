"""CAT-Seg's aggregator stage by stage against the reference's outputs (../shared/goldens)."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from safetensors.numpy import load_file

from sammi_jax.config import SEGMENTER_SIZES, AggregatorConfig
from sammi_jax.convert import clip
from sammi_jax.convert.catseg import (
    AGGREGATOR_PREFIX,
    CLIP_PREFIX,
    aggregator_config,
    aggregator_rules,
    model_rules,
    rules_for,
)
from sammi_jax.convert.rules import apply_rules, invert_rules
from sammi_jax.errors import SammiError
from sammi_jax.layers import basic, class_attention, swin
from sammi_jax.losses import segmentation_loss
from sammi_jax.models.aggregator import Aggregator, choose_classes
from sammi_jax.models.cost_map import cost_map
from sammi_jax.models.sammi import Sammi
from sammi_jax.ops.windows import shifted_window_mask, window_merge, window_partition
from sammi_jax.params import abstract_params, build, flat_params
from tests.conftest import SHARED
from tests.parity import assert_parity, errors

GOLDENS = SHARED / "goldens"
needs_goldens = pytest.mark.skipif(not GOLDENS.is_dir(), reason=f"no reference data at {GOLDENS}")

MAPS = "b c h w -> b h w c"
CLASS_MAPS = "t c h w -> 1 t h w c"
CLASS_TOKENS = "t (h w) c -> 1 t h w c"


def _aggregator(tensors, known, embed_dim):
    tensors = {key: value for key, value in tensors.items() if key.startswith(AGGREGATOR_PREFIX)}
    config = aggregator_config(tensors, known)
    make = lambda: Aggregator(config, embed_dim, rngs=nnx.Rngs(0))  # noqa: E731
    ignored = {key: "buffer" for key in tensors if key.endswith("attn_mask")}
    rules = aggregator_rules(config.num_layers, target="")
    return build(make, apply_rules(tensors, rules, abstract_params(make), ignored))


class Tiny:
    """The full tiny model's aggregator and every intermediate of two of its forward passes."""

    def __init__(self):
        self.facts = json.loads((GOLDENS / "catseg_tiny.json").read_text())
        self.tensors = load_file(GOLDENS / "catseg_tiny.safetensors")
        self.data = np.load(GOLDENS / "catseg_tiny_eval.npz")
        self.train = np.load(GOLDENS / "catseg_tiny_train.npz")
        known = {"num_heads": 4, "pooling_size": 2}
        self.aggregator = _aggregator(self.tensors, known, 40)
        self.dense = self._dense(self("dense"))
        self.guidance = tuple(rearrange(self(f"res{i}"), MAPS) for i in (4, 5))
        self.text = jnp.asarray(self.data["text_test"])[:, None]
        self.everyone = jnp.ones((1, len(self.text)), bool)

    def __call__(self, name):
        return self.data[f"eval_pool1/{name}"]

    @staticmethod
    def _dense(rows):
        return rearrange(jnp.asarray(rows[:, 1:]), "b (h w) d -> b h w d", h=12)

    def cost(self):
        return rearrange(jnp.asarray(self("corr")), "t p h w -> 1 h w t p")

    def appearance(self):
        return rearrange(jnp.asarray(self("proj_guidance")), MAPS)

    def tokens(self, name):
        return rearrange(jnp.asarray(self(name)), CLASS_TOKENS, h=12)

    def layer_input(self, i):
        if i == 0:
            return rearrange(jnp.asarray(self("corr_embed")), CLASS_MAPS)
        return rearrange(jnp.asarray(self(f"layer{i - 1}_class")), "b c t h w -> b t h w c")

    def block(self, i, j):
        """Our block j of layer i on the reference's input to it."""
        spatial = self.aggregator.layers[i].spatial
        x = self.layer_input(i) if j == 0 else self.tokens(f"layer{i}_block1")
        return jax.jit(lambda x, g: spatial.blocks[j](x, spatial.guidance_norm(g)))(
            x, self.appearance()
        )

    def classes(self, i, pooling, num_padding=249):
        layer = self.aggregator.layers[i].classes
        count = jnp.array([num_padding])
        # A new function at each call, here and elsewhere: `jax.jit` would remember the old weights.
        run = jax.jit(lambda x, text: layer(x, text, self.everyone, count, pooling))
        return run(self.tokens(f"layer{i}_block2"), jnp.asarray(self("proj_text")))

    def decoder(self, i):
        block = self.aggregator.decoder[i]
        x = self.layer_input(2)[:, :3] if i == 0 else self.decoder(0)
        level = rearrange(jnp.asarray(self(f"proj_decoder_guidance{i}")), MAPS)
        return jax.jit(lambda x, level: block(x, level))(x, level)  # noqa: PLW0108  (a new function)


class Padded:
    """The aggregator alone, with a padding length that its class counts straddle."""

    def __init__(self):
        self.tensors = load_file(GOLDENS / "catseg_aggregator_pad.safetensors")
        self.data = np.load(GOLDENS / "catseg_aggregator_pad.npz")
        self.known = {"num_heads": 4, "pooling_size": 2, "pad_length": 6}
        maps = lambda name: rearrange(jnp.asarray(self.data[name]), MAPS)  # noqa: E731
        self.features, self.appearance = maps("img_feats"), maps("app_guidance")
        self.guidance = (maps("dec_guidance0"), maps("dec_guidance1"))
        self.text = jnp.asarray(self.data["text_feats"])[:, None]

    def aggregator(self, **known):
        return _aggregator(self.tensors, {**self.known, **known}, 20)

    def logits(self, text, mask=None, pooling=2, **known):
        aggregator = self.aggregator(**known)
        mask = jnp.ones(len(text), bool) if mask is None else jnp.asarray(mask)

        def run(features, text):
            cost = cost_map(features, text)
            return aggregator(cost, text, self.appearance, self.guidance, mask, pooling)

        return jax.jit(run)(self.features, text)


@pytest.fixture(scope="module")
def tiny():
    return Tiny()


@pytest.fixture(scope="module")
def padded():
    return Padded()


# Stage by stage: each is given the reference's own input, so that errors do not add up.


@needs_goldens
def test_cost_map(tiny):
    ours = cost_map(tiny.dense, 3.0 * tiny.text)  # any length of the features gives the same
    assert_parity(rearrange(ours, "1 h w t p -> t p h w"), tiny("corr"), name="corr")


@needs_goldens
def test_embedding_and_projections(tiny):
    aggregator = tiny.aggregator
    embedded = rearrange(aggregator.embed(tiny.cost()), "1 t h w c -> t c h w")
    assert_parity(embedded, tiny("corr_embed"), name="corr_embed")
    to_nchw = lambda x: rearrange(x, "b h w c -> b c h w")  # noqa: E731
    appearance = aggregator.project_appearance(tiny.dense)
    assert_parity(to_nchw(appearance), tiny("proj_guidance"), name="proj_guidance")
    text = aggregator.project_text(tiny.text)[None]
    assert_parity(text, tiny("proj_text"), name="proj_text")
    for i, level in enumerate(aggregator.project_guidance(tiny.guidance)):
        name = f"proj_decoder_guidance{i}"
        assert_parity(to_nchw(level), tiny(name), name=name)


@needs_goldens
@pytest.mark.parametrize("i", [0, 1])
def test_window_blocks(tiny, i):
    for j in (0, 1):
        name = f"layer{i}_block{j + 1}"
        assert_parity(tiny.block(i, j), tiny.tokens(name), name=name)


@needs_goldens
@pytest.mark.parametrize("i", [0, 1])
def test_class_attention(tiny, i):
    name = f"layer{i}_class"
    ours = rearrange(tiny.classes(i, 1), "b t h w c -> b c t h w")
    assert_parity(ours, tiny(name), name=name)
    if i == 0:
        ours = rearrange(tiny.classes(i, 2), "b t h w c -> b c t h w")
        assert_parity(ours, tiny.data[f"eval_poolT/{name}"], name=f"{name}, pooled")


@needs_goldens
def test_decoder(tiny):
    for i in (0, 1):
        reference = rearrange(tiny(f"decoder{i + 1}"), CLASS_MAPS)
        ours = tiny.decoder(i)[:, : reference.shape[1]]
        assert_parity(ours, reference, name=f"decoder{i + 1}")
    guidance = tiny.aggregator.project_guidance(tiny.guidance)
    logits = jax.jit(tiny.aggregator.decode)(tiny.layer_input(2), guidance)
    assert_parity(logits, tiny("logits"), name="logits from layer1_class")


@needs_goldens
def test_training_pass(tiny):
    data = tiny.train
    dense, text = tiny._dense(data["fwd/dense"]), jnp.asarray(tiny.data["text_train"])[:, None]
    cost = cost_map(dense, text)
    ours = rearrange(cost, "b h w t p -> (b t) p h w")
    assert_parity(ours, data["fwd/corr"], name="train corr")
    aggregator, layer = tiny.aggregator, tiny.aggregator.layers[0]

    def run(dense, cost, text):
        x = layer.spatial(aggregator.embed(cost), aggregator.project_appearance(dense))
        mask, count = jnp.ones((2, 5), bool), jnp.array([251, 251])
        return layer.classes(x, aggregator.project_text(text)[None], mask, count, 2)

    ours = rearrange(jax.jit(run)(dense, cost, text), "b t h w c -> b c t h w")
    assert_parity(ours, data["fwd/layer0_class"], name="train layer0_class")


# Known mistakes must fail the gate.


def _fails(ours, reference):
    return errors(ours, reference)[0] > 1e-5


def _tanh_gelu(tiny, patch):
    patch.setitem(basic.ACTIVATIONS, "gelu", lambda x: jax.nn.gelu(x, approximate=True))
    return tiny.block(0, 0), tiny.tokens("layer0_block1")


def _eps(tiny, patch):
    spatial = tiny.aggregator.layers[0].spatial
    for norm in (spatial.blocks[0].norm1, spatial.blocks[0].norm2, spatial.guidance_norm):
        patch.setattr(norm, "epsilon", 1e-6)
    faint = np.asarray(tiny.layer_input(0).var(-1)) < 0.1  # where eps weighs most
    return tiny.block(0, 0)[faint], tiny.tokens("layer0_block1")[faint]


def _no_shift_mask(tiny, patch):
    patch.setattr(swin, "STRANGER_BIAS", 0.0)
    return tiny.block(0, 1), tiny.tokens("layer0_block2")


def _guidance_first(tiny, patch):
    kernel = tiny.aggregator.layers[0].spatial.blocks[0].attention.query.kernel
    value = kernel[...]
    patch.setattr(kernel, "raw_value", jnp.concatenate([value[32:], value[:32]]))
    return tiny.block(0, 0), tiny.tokens("layer0_block1")


def _half_pixel_unpooling(tiny, patch):
    resize = class_attention.resize
    patch.setattr(class_attention, "resize", lambda x, size, method, **_: resize(x, size, method))
    reference = rearrange(tiny.data["eval_poolT/layer0_class"], "b c t h w -> b t h w c")
    return tiny.classes(0, 2), reference


def _single_residual(tiny, patch):
    return tiny.classes(0, 1) - tiny.tokens("layer0_block2"), tiny.layer_input(1)


def _no_padding(tiny, patch):
    return tiny.classes(0, 1, num_padding=0), tiny.layer_input(1)


def _flipped_kernel(tiny, patch):
    kernel = tiny.aggregator.decoder[0].up.kernel
    patch.setattr(kernel, "raw_value", kernel[...][:, ::-1, ::-1])
    return tiny.decoder(0), rearrange(tiny("decoder1"), CLASS_MAPS)


MISTAKES = [_tanh_gelu, _eps, _no_shift_mask, _guidance_first, _half_pixel_unpooling]
MISTAKES += [_single_residual, _no_padding, _flipped_kernel]


@needs_goldens
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__.strip("_"))
def test_mistake_fails(tiny, mistake, monkeypatch):
    ours, reference = mistake(tiny, monkeypatch)
    print(mistake.__name__, errors(ours, reference))
    assert _fails(ours, reference)


# More classes than the padding length, fewer, and absent ones.


@needs_goldens
@pytest.mark.parametrize("tag", ["T10", "T6", "T4", "T10_pool1", "T4_fullattn"])
def test_class_counts(padded, tag):
    count, reference = int(tag[1:].split("_")[0]), padded.data[f"{tag}/logits"]
    kind = "full" if "full" in tag else "linear"
    pooling = 1 if "pool1" in tag else 2
    ours = np.asarray(padded.logits(padded.text[:count], pooling=pooling, attention=kind))
    assert_parity(ours, reference, name=f"{tag} logits")
    np.testing.assert_array_equal(ours == -100.0, reference == -100.0)
    chosen = reference != -100.0  # the others' exact -100 would hide an error
    assert_parity(ours[chosen], reference[chosen], name=f"{tag} chosen logits")


@needs_goldens
def test_selection_and_its_layers(padded):
    data, aggregator = padded.data, padded.aggregator()
    cost = cost_map(padded.features, padded.text)
    assert_parity(jnp.max(cost, axis=(1, 2, 4)), data["T10/score_max"], name="T10 score_max")
    chosen = np.asarray(choose_classes(cost, jnp.ones((2, 10), bool), 6))
    np.testing.assert_array_equal(np.sort(chosen), np.sort(data["T10/selected"]))
    selected = data["T10/selected"]  # in the reference's order
    cost = jnp.take_along_axis(cost, selected[:, None, None, :, None], axis=3)
    assert_parity(rearrange(cost, "b h w t p -> (b t) p h w"), data["T10/corr"], name="T10 corr")

    x, text = aggregator.embed(cost), aggregator.project_text(padded.text[selected])
    appearance = aggregator.project_appearance(padded.appearance)

    @jax.jit
    def run(state, x):
        layer = nnx.merge(graphdef, state)
        x = layer.spatial(x, appearance)
        return layer.classes(x, text, jnp.ones((2, 6), bool), jnp.zeros(2, int), 2)

    for i, layer in enumerate(aggregator.layers):
        graphdef, state = nnx.split(layer)
        x = run(state, x)
        ours = rearrange(x, "b t h w c -> b c t h w")
        assert_parity(ours, data[f"T10/layer{i}"], name=f"T10 layer{i}")


@needs_goldens
@pytest.mark.parametrize("slots", [(1, 2, 4, 5), (0, 3, 4, 8)])
def test_absent_classes_change_nothing(padded, slots, rng):
    """Four classes in 6 slots (the padding length) and in 9 (more than it: selection)."""
    size = max(6, slots[-1] + 1)
    text = rng.normal(size=(size, 1, 20)).astype("f")
    text[3 if size == 6 else 7] = 0.0
    text[list(slots)] = padded.text[:4]
    mask = np.isin(np.arange(size), slots)
    ours = np.asarray(padded.logits(jnp.asarray(text), mask))
    name = f"4 classes in {size} slots"
    assert_parity(ours[:, list(slots)], padded.data["T4/logits"], name=name)
    assert (ours[:, ~mask] == -100.0).all()


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


def _random(make, rng):
    """A module with random variables, without the compilations of its initialisation."""
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
    assert _fails(no_padding[0], ours[0])
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
    skip = build(make(True), params | {"skip_scale": np.float32(10), "skip_bias": np.float32(-5)})
    dense, text, guidance = _random_inputs(rng)
    # A ramp from the top to the bottom: one plus or minus two tenths over the two templates.
    rows = np.arange(8.0) / 8
    cost = np.broadcast_to(rows[:, None, None, None] + np.array([1.2, 0.8]), (2, 8, 8, 3, 2))
    mask = jnp.array([True, False, True])

    def run(cost):
        inputs = (cost, text, dense, guidance, mask, 1)
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
    assert _fails(run(4, True), run(4, False))


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


@needs_goldens
def test_shifted_window_mask(tiny):
    for i in (0, 1):
        stored = tiny.tensors[f"{AGGREGATOR_PREFIX}layers.{i}.swin_block.block_2.attn_mask"]
        np.testing.assert_array_equal(shifted_window_mask(12, 12, 6, 3), stored == -100.0)
        assert set(np.unique(stored)) == {-100.0, 0.0}
    assert not shifted_window_mask(12, 12, 6, 0).any()


# Loss


@needs_goldens
def test_loss_matches_the_reference(tiny):
    logits, labels = jnp.asarray(tiny.train["fwd/logits"]), jnp.asarray(tiny.train["target"], int)
    mask = jnp.ones(5, bool)
    ours = segmentation_loss(logits, labels, mask)
    assert_parity(ours, tiny.facts["loss_reference"], 1e-6, "loss")
    dropped = segmentation_loss(logits, labels, mask, ignored_as_negative=False)
    reference = tiny.facts["loss_if_ignored_pixels_were_dropped"]
    assert_parity(dropped, reference, 1e-6, "loss, ignored pixels dropped")
    assert _fails(dropped, tiny.facts["loss_reference"])
    padded = jnp.concatenate([logits, jnp.full((2, 3, 48, 48), -100.0)], axis=1)
    for value in (7.0, -100.0):
        padded = padded.at[:, 5:].set(value)
        assert_parity(segmentation_loss(padded, labels, jnp.arange(8) < 5), ours, 1e-6, "padded")


def test_loss_without_any_pixel_is_zero(rng):
    logits = jnp.asarray(rng.normal(size=(1, 3, 4, 4)))
    nothing = jnp.full((1, 8, 8), 255)
    mask = jnp.ones(3, bool)
    assert segmentation_loss(logits, nothing, mask, ignored_as_negative=False) == 0.0
    assert segmentation_loss(logits, nothing, mask) > 0.0


# Conversion


@needs_goldens
def test_description_gives_what_shapes_do_not(tiny):
    source = rules_for(tiny.tensors, config_json=tiny.facts)
    config, aggregator = source.config, source.config.aggregator
    assert (config.clip_size, config.crop_size, config.taps) == (96, 96, (1, 2))
    assert (config.sliding.output_size, config.sliding.stride) == (160, 64)
    assert (config.clip.vision.num_heads, config.clip.text.num_heads) == (3, 2)
    assert (aggregator.window_size, aggregator.grid_size, aggregator.pad_length) == (6, 12, 256)
    assert rules_for(
        tiny.tensors, config_json=tiny.facts, overrides={"taps": (0, 3)}
    ).config.taps == (0, 3)


@needs_goldens
def test_prefix_missing_mask_and_round_trip(tiny):
    plain = {key: value for key, value in tiny.tensors.items() if not key.endswith("attn_mask")}
    wrapped = {f"module.{key}": value for key, value in plain.items()}
    source = rules_for(wrapped, config_json=tiny.facts)
    assert source.config == rules_for(tiny.tensors, config_json=tiny.facts).config
    assert not source.ignored
    expected = abstract_params(lambda: Sammi(source.config, rngs=nnx.Rngs(0)))
    params = apply_rules(wrapped, source.rules, expected, source.ignored)
    back = invert_rules(params, source.rules)
    assert back.keys() == wrapped.keys()
    for key, value in wrapped.items():
        np.testing.assert_array_equal(back[key], value)


@needs_goldens
def test_conversion_errors(tiny):
    with pytest.raises(SammiError, match=r"4 layers.*layer_indexes"):
        rules_for(tiny.tensors, overrides={"vision_heads": 3, "text_heads": 2})
    with pytest.raises(SammiError, match="does not describe a CAT-Seg"):
        rules_for(tiny.tensors, config_json={"model_type": "clip"})
    facts = json.loads(json.dumps(tiny.facts))
    facts["config"]["agg"]["pooling"] = [2, 1]
    with pytest.raises(SammiError, match=r"\[2, 1\] is not a square"):
        rules_for(tiny.tensors, config_json=facts)
    with pytest.raises(SammiError, match="nonsense: not among"):
        rules_for(tiny.tensors, overrides={"nonsense": 1})
    for key in ("conv1.weight", "decoder2.conv.double_conv.0.weight"):
        broken = dict(tiny.tensors)
        del broken[AGGREGATOR_PREFIX + key]
        with pytest.raises(SammiError, match=f"missing {AGGREGATOR_PREFIX}{key}"):
            rules_for(broken, config_json=tiny.facts)
    extra = {**tiny.tensors, "sem_seg_head.extra": np.zeros(3)}
    source = rules_for(extra, config_json=tiny.facts)
    expected = abstract_params(lambda: Sammi(source.config, rngs=nnx.Rngs(0)))
    with pytest.raises(SammiError, match=r"unknown \(1\): sem_seg_head.extra"):
        apply_rules(extra, source.rules, expected, source.ignored)


@pytest.mark.parametrize(
    ("size", "keys", "total"), [("vitb16", 484, 154_289_378), ("vitl14_336", 652, 433_726_946)]
)
def test_released_sizes_are_recognised(size, keys, total):
    """From shapes alone: the published configuration, key count and parameter count."""
    config = SEGMENTER_SIZES[size]
    expected = abstract_params(lambda: Sammi(config, rngs=nnx.Rngs(0)))
    empty = {path: np.broadcast_to(np.float32(0), v.shape) for path, v in expected.items()}
    rules = model_rules(config, clip.Layout("catseg", CLIP_PREFIX))
    tensors = invert_rules(empty, rules)
    assert sum(np.size(value) for value in tensors.values()) == total
    for i in (0, 1):
        key = f"{AGGREGATOR_PREFIX}layers.{i}.swin_block.block_2.attn_mask"
        tensors[key] = np.zeros((4, 144, 144), "f")
    assert len(tensors) == keys
    source = rules_for(tensors)
    assert source.config == config
    assert len(source.ignored) == 2
