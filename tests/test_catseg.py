"""CAT-Seg's aggregator stage by stage against the reference's outputs (`tests/goldens`)."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from safetensors.numpy import load_file

from sammi_jax.convert.catseg import aggregator_config
from sammi_jax.convert.catseg_keys import AGGREGATOR_PREFIX, aggregator_rules
from sammi_jax.convert.rules import apply_rules
from sammi_jax.layers import basic, class_attention, swin
from sammi_jax.models.aggregator import Aggregator, choose_classes
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.cost_map import cost_map
from sammi_jax.ops.windows import shifted_window_mask
from sammi_jax.weights.params import abstract_params, build
from tests.parity import assert_parity, errors

MAPS = "b c h w -> b h w c"
CLASS_MAPS = "t c h w -> 1 t h w c"
CLASS_TOKENS = "t (h w) c -> 1 t h w c"


def _aggregator(tensors, known, embed_dim):
    tensors = {key: value for key, value in tensors.items() if key.startswith(AGGREGATOR_PREFIX)}
    config = aggregator_config(tensors, known)
    make = lambda: Aggregator(config, embed_dim, rngs=nnx.Rngs(0))  # noqa: E731
    ignored = {key: "buffer" for key in tensors if key.endswith("attn_mask")}
    rules = aggregator_rules(config.num_layers, target="")
    params = apply_rules(tensors, rules, abstract_params(make), ignored)
    return build(make, {path: jnp.asarray(value) for path, value in params.items()})


class Tiny:
    """The full tiny model's aggregator and every intermediate of two of its forward passes."""

    def __init__(self, folder):
        self.facts = json.loads((folder / "catseg_tiny.json").read_text())
        self.tensors = load_file(folder / "catseg_tiny.safetensors")
        self.data = np.load(folder / "catseg_tiny_eval.npz")
        self.train = np.load(folder / "catseg_tiny_train.npz")
        known = {"num_heads": 4, "pooling_size": 2}
        self.aggregator = _aggregator(self.tensors, known, 40)
        self.dense = self._dense(self("dense"))
        self.guidance = tuple(rearrange(jnp.asarray(self(f"res{i}")), MAPS) for i in (4, 5))
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
        return jax.jit(lambda x, level: block(x, block.share(level)))(x, level)


class Padded:
    """The aggregator alone, with a padding length that its class counts straddle."""

    def __init__(self, folder):
        self.tensors = load_file(folder / "catseg_aggregator_pad.safetensors")
        self.data = np.load(folder / "catseg_aggregator_pad.npz")
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
            return aggregator(cost, ClassTexts(text, mask), self.appearance, self.guidance, pooling)

        return jax.jit(run)(self.features, text)


@pytest.fixture
def tiny(goldens):
    return _load(Tiny, goldens)


@pytest.fixture
def padded(goldens):
    return _load(Padded, goldens)


@functools.cache
def _load(kind, folder):
    return kind(folder)


# Stage by stage: each is given the reference's own input, so that errors do not add up.


def test_cost_map(tiny):
    ours = cost_map(tiny.dense, 3.0 * tiny.text)  # any length of the features gives the same
    assert_parity(rearrange(ours, "1 h w t p -> t p h w"), tiny("corr"), name="corr")


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


@pytest.mark.parametrize("i", [0, 1])
def test_window_blocks(tiny, i):
    for j in (0, 1):
        name = f"layer{i}_block{j + 1}"
        assert_parity(tiny.block(i, j), tiny.tokens(name), name=name)


@pytest.mark.parametrize("i", [0, 1])
def test_class_attention(tiny, i):
    name = f"layer{i}_class"
    ours = rearrange(tiny.classes(i, 1), "b t h w c -> b c t h w")
    assert_parity(ours, tiny(name), name=name)
    if i == 0:
        ours = rearrange(tiny.classes(i, 2), "b t h w c -> b c t h w")
        assert_parity(ours, tiny.data[f"eval_poolT/{name}"], name=f"{name}, pooled")


def test_decoder(tiny):
    for i in (0, 1):
        reference = rearrange(tiny(f"decoder{i + 1}"), CLASS_MAPS)
        ours = tiny.decoder(i)[:, : reference.shape[1]]
        assert_parity(ours, reference, name=f"decoder{i + 1}")
    shared = tiny.aggregator.share(tiny.aggregator.project_guidance(tiny.guidance))
    logits = jax.jit(tiny.aggregator.decode)(tiny.layer_input(2), shared)
    assert_parity(logits, tiny("logits"), name="logits from layer1_class")


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
    patch.setattr(swin, "MASK_BIAS", 0.0)
    return tiny.block(0, 1), tiny.tokens("layer0_block2")


def _guidance_first(tiny, patch):
    query = tiny.aggregator.layers[0].spatial.blocks[0].attention.query
    kernel = query.kernel[...]
    patch.setattr(query, "kernel", nnx.Param(jnp.concatenate([kernel[32:], kernel[:32]])))
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
    up = tiny.aggregator.decoder[0].up
    patch.setattr(up, "kernel", nnx.Param(up.kernel[...][:, ::-1, ::-1]))
    return tiny.decoder(0), rearrange(tiny("decoder1"), CLASS_MAPS)


MISTAKES = [_tanh_gelu, _eps, _no_shift_mask, _guidance_first, _half_pixel_unpooling]
MISTAKES += [_single_residual, _no_padding, _flipped_kernel]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda f: f.__name__.strip("_"))
def test_mistake_fails(tiny, mistake, monkeypatch):
    ours, reference = mistake(tiny, monkeypatch)
    print(mistake.__name__, errors(ours, reference))
    assert _fails(ours, reference)


# More classes than the padding length, fewer, and absent ones.


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


def test_shifted_window_mask(tiny):
    for i in (0, 1):
        stored = tiny.tensors[f"{AGGREGATOR_PREFIX}layers.{i}.swin_block.block_2.attn_mask"]
        np.testing.assert_array_equal(shifted_window_mask(12, 12, 6, 3), stored == -100.0)
        assert set(np.unique(stored)) == {-100.0, 0.0}
    assert not shifted_window_mask(12, 12, 6, 0).any()
