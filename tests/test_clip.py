import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from sammi_jax import layers
from sammi_jax.config.model import CLIP_SIZES, ClipConfig, ClipTextConfig, ClipVisionConfig
from sammi_jax.convert.clip import KeyNames, clip_rules, detect_key_names, infer_config, rules_for
from sammi_jax.convert.rules import apply_rules, invert_rules
from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.models import clip as clip_module
from sammi_jax.models.clip import Clip
from sammi_jax.ops import resize as resize_module
from sammi_jax.weights.params import abstract_params, build
from tests.parity import assert_parity

torch.set_num_threads(1)  # its waiting threads would take the cores from XLA

SMALL = ClipConfig(
    vision=ClipVisionConfig(image_size=40, patch_size=8, width=48, num_layers=4, num_heads=3),
    text=ClipTextConfig(vocab_size=50, context_length=20, width=32, num_layers=3, num_heads=2),
    embed_dim=24,
)
HEADS = {"vision_heads": 3, "text_heads": 2}


def torch_model(config: ClipConfig, seed: int = 0) -> transformers.CLIPModel:
    """transformers' CLIP of these sizes, every tensor random and non-degenerate."""
    vision, text = config.vision, config.text
    shared = {"hidden_act": config.activation, "layer_norm_eps": config.eps}
    torch_config = transformers.CLIPConfig(
        vision_config={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            **shared,
        },
        text_config={
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            **shared,
        },
        projection_dim=config.embed_dim,
    )
    model = transformers.CLIPModel(torch_config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim <= 1 and "class_embedding" not in name:
                parameter.add_(0.1 * noise)
            elif "embedding" in name and "patch" not in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / np.sqrt(np.prod(parameter.shape[1:])))
    return model


def state_dict(model) -> dict[str, np.ndarray]:
    return {key: value.detach().numpy() for key, value in model.state_dict().items()}


def convert(tensors, **options) -> Clip:
    source = rules_for(tensors, **options)
    make = lambda: Clip(source.config, rngs=Keys(0))  # noqa: E731
    params = apply_rules(tensors, source.rules, abstract_params(make), source.ignored)
    return build(make, jax.tree.map(jnp.asarray, params))


def call(model: Clip, method: str, *args, **kwargs):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s, *a: getattr(nnx.merge(graphdef, s), method)(*a, **kwargs))(
        state, *args
    )


def openai_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A Hugging Face state dictionary under OpenAI's names, without our tables."""
    renamed = {
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
        "logit_scale": tensors["logit_scale"],
    }
    for end in ("weight", "bias"):
        renamed[f"visual.ln_pre.{end}"] = tensors[f"vision_model.pre_layrnorm.{end}"]
        renamed[f"visual.ln_post.{end}"] = tensors[f"vision_model.post_layernorm.{end}"]
        renamed[f"ln_final.{end}"] = tensors[f"text_model.final_layer_norm.{end}"]
    for key in tensors:
        if not key.endswith("layer_norm1.weight"):
            continue
        tower, _, _, number = key.split(".")[:4]
        theirs = key.removesuffix("layer_norm1.weight")
        ours = f"{'visual.' if tower == 'vision_model' else ''}transformer.resblocks.{number}."
        for end in ("weight", "bias"):
            qkv = [tensors[f"{theirs}self_attn.{x}_proj.{end}"] for x in "qkv"]
            renamed[f"{ours}attn.in_proj_{end}"] = np.concatenate(qkv)
            for new, old in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                renamed[f"{ours}{new}.{end}"] = tensors[f"{theirs}{old}.{end}"]
    return renamed


def openai_scalars(config: ClipConfig) -> dict[str, np.ndarray]:
    return {
        "input_resolution": np.array(config.vision.image_size),
        "context_length": np.array(config.text.context_length),
        "vocab_size": np.array(config.text.vocab_size),
    }


def torch_dense(model, pixels: torch.Tensor) -> torch.Tensor:
    """The dense mode of docs/catseg.md part a, on transformers' modules."""
    vision = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
    *blocks, last = vision.encoder.layers
    for block in blocks:
        x = block(x, attention_mask=None)
    attention = last.self_attn
    y = attention.out_proj(attention.v_proj(last.layer_norm1(x))) + x[:, :1]
    y = y + last.mlp(last.layer_norm2(y))
    return model.visual_projection(vision.post_layernorm(y))


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def reference():
    return torch_model(SMALL)


@pytest.fixture(scope="module")
def clip(reference) -> Clip:
    return convert(state_dict(reference), config_json=reference.config.to_dict())


@pytest.fixture
def image(rng) -> np.ndarray:
    return rng.normal(size=(2, 40, 40, 3)).astype(np.float32)


@pytest.fixture
def token_ids(rng) -> np.ndarray:
    """Three rows that end at different places, zero padded."""
    ids = np.zeros((3, SMALL.text.context_length), np.int32)
    for row, length in zip(ids, (1, 7, 18), strict=True):
        row[: length + 2] = [48, *rng.integers(1, 48, length), 49]
    return ids


def reference_image(reference, image) -> np.ndarray:
    with torch.no_grad():
        return reference.get_image_features(to_torch(image)).pooler_output.numpy()


def reference_text(reference, token_ids) -> np.ndarray:
    with torch.no_grad():
        ids = torch.from_numpy(token_ids.astype(np.int64))
        return reference.get_text_features(ids).pooler_output.numpy()


def test_config_is_read_from_hugging_face(clip):
    assert clip.config == SMALL


def test_patch_embedding_and_blocks(clip, reference, image):
    with torch.no_grad():
        vision = reference.vision_model
        patches = vision.embeddings.patch_embedding(to_torch(image)).numpy()
        hidden = vision(to_torch(image), output_hidden_states=True).hidden_states
    ours = clip.vision.patch_embed(jnp.asarray(image))
    assert_parity(ours, patches.transpose(0, 2, 3, 1), name="clip patch embedding")
    tokens, rows = clip.vision.embed(jnp.asarray(image))
    assert rows == 5
    assert_parity(tokens, hidden[0].numpy(), name="clip embeddings")
    last, (first,) = clip.vision.transformer(tokens, taps=(0,))
    assert_parity(first, hidden[1].numpy(), name="clip first block")
    assert_parity(last, hidden[-1].numpy(), name="clip all blocks")


def test_encode_image(clip, reference, image):
    assert_parity(
        call(clip, "encode_image", image), reference_image(reference, image), name="clip image"
    )


def test_encode_image_away_from_the_native_grid(clip, reference, rng):
    image = rng.normal(size=(2, 72, 24, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = reference.get_image_features(
            to_torch(image), interpolate_pos_encoding=True
        ).pooler_output
    assert_parity(call(clip, "encode_image", image), theirs.numpy(), name="clip image resized")


@pytest.mark.parametrize("grid", [(5, 5), (9, 9), (3, 4), (12, 7)])
def test_position_table(clip, grid):
    table = np.array(clip.vision.position_embedding[...])
    patches = torch.from_numpy(table[1:].reshape(5, 5, -1)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        patches, size=grid, mode="bicubic", align_corners=False
    )[0]
    expected = np.concatenate([table[:1], resized.flatten(1).T.numpy()])
    assert_parity(clip.vision.position_table(grid), expected, name=f"clip positions {grid}")


def test_encode_text(clip, reference, token_ids):
    theirs = reference_text(reference, token_ids)
    assert_parity(call(clip, "encode_text", token_ids), theirs, name="clip text")
    # Causal: what follows the end token changes nothing, so the padding may be left off.
    short = call(clip, "encode_text", token_ids[:2, :9])
    assert_parity(short, theirs[:2], name="clip text, short rows")


def test_text_that_is_too_long_is_refused(clip):
    with pytest.raises(SammiError, match="21 tokens a text: this model reads 20"):
        clip.encode_text(jnp.zeros((1, 21), jnp.int32))


@pytest.mark.parametrize("size", [(40, 40), (72, 72), (32, 64)])
def test_encode_dense(clip, reference, rng, size):
    image = rng.normal(size=(2, *size, 3)).astype(np.float32)
    grid = (size[0] // 8, size[1] // 8)
    features, taps = call(clip, "encode_dense", image, taps=(0, 2))
    with torch.no_grad():
        dense = torch_dense(reference, to_torch(image))[:, 1:].numpy()
        hidden = reference.vision_model(
            to_torch(image), output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states
    assert_parity(features, dense.reshape(2, *grid, -1), name=f"clip dense {size}")
    for tap, number in zip(taps, (0, 2), strict=True):
        theirs = hidden[number + 1][:, 1:].numpy().reshape(2, *grid, -1)
        assert_parity(tap, theirs, name=f"clip tap {number} {size}")


@pytest.mark.parametrize(
    ("size", "taps"), [("vitb16", (3, 7)), ("vitl14", (7, 15)), ("vitl14_336", (7, 15))]
)
def test_default_taps_are_those_of_catseg(monkeypatch, size, taps):
    clip = nnx.eval_shape(lambda: Clip(CLIP_SIZES[size], rngs=Keys(0)))
    seen = []

    def dense(self, image, taps, remat):
        seen.append(taps)
        return image, (image, image)

    monkeypatch.setattr(clip_module.ImageTower, "dense", dense)
    clip.encode_dense(jnp.zeros((1, 8, 8, 3)))
    assert seen == [taps]


@pytest.mark.parametrize("taps", [(0, 3), (2, 1), (-1, 1)])
def test_taps_that_cannot_be_read_are_refused(clip, image, taps):
    with pytest.raises(SammiError, match="the dense mode reads two of blocks 0 to 2"):
        clip.encode_dense(jnp.asarray(image), taps)


def test_image_sides_must_be_multiples_of_the_patch(clip):
    with pytest.raises(SammiError, match="40 x 44 pixels: give multiples of the patch size 8"):
        clip.encode_image(jnp.zeros((1, 40, 44, 3)))


def test_dense_mode_leaves_the_last_query_and_key_out(clip, image):
    graphdef, state = nnx.split(clip)

    def loss(s):
        return jnp.sum(nnx.merge(graphdef, s).encode_dense(jnp.asarray(image))[0] ** 2)

    attention = jax.jit(jax.grad(loss))(state)["vision"]["transformer"]["block"]["attention"]
    for part, last_is_dead in (("query", True), ("key", True), ("value", False), ("out", False)):
        gradient = np.abs(attention[part]["kernel"][...]).max(axis=(1, 2))
        assert (gradient[:-1] > 0).all()
        assert (gradient[-1] == 0) == last_is_dead


# Known mistakes: each must be seen by the gate.


def fails(clip, reference, image):
    theirs = reference_image(reference, image)
    with pytest.raises(AssertionError, match="rel_l2"):
        assert_parity(call(clip, "encode_image", image), theirs)


def test_gate_sees_erf_gelu(reference, image):
    fails(
        convert(state_dict(reference), overrides={"activation": "gelu", **HEADS}), reference, image
    )


def test_gate_sees_tanh_gelu(image, monkeypatch):
    reference = torch_model(dataclasses.replace(SMALL, activation="gelu"))
    clip = convert(state_dict(reference), config_json=reference.config.to_dict())
    assert_parity(
        call(clip, "encode_image", image), reference_image(reference, image), name="clip image gelu"
    )
    monkeypatch.setitem(layers.ACTIVATIONS, "gelu", jax.nn.gelu)  # the library's default
    fails(clip, reference, image)


def test_gate_sees_eps(image):
    reference = torch_model(SMALL)
    with torch.no_grad():  # a faint embedding, so that the first norm's eps weighs
        for parameter in reference.vision_model.embeddings.parameters():
            parameter.mul_(0.1)
    tensors, options = state_dict(reference), {"activation": "quick_gelu", **HEADS}
    theirs = reference_image(reference, image)
    ours = call(convert(tensors, overrides=options), "encode_image", image)
    assert_parity(ours, theirs, name="clip image, faint embedding")
    fails(convert(tensors, overrides={"eps": 1e-6, **options}), reference, image)


def test_gate_sees_swapped_grid_axes(clip, reference, image, monkeypatch):
    original = clip_module.rearrange

    def swapped(x, pattern, **sizes):
        return original(x, pattern.replace("-> b (h w) c", "-> b (w h) c"), **sizes)

    monkeypatch.setattr(clip_module, "rearrange", swapped)
    fails(clip, reference, image)


@pytest.mark.parametrize("mistake", ["align_corners", "cubic_a"])
def test_gate_sees_a_wrong_position_resize(clip, monkeypatch, mistake, reference, rng):
    image = rng.normal(size=(1, 72, 72, 3)).astype(np.float32)
    original = clip_module.resize
    resize_module.resize_matrix.cache_clear()
    if mistake == "cubic_a":
        monkeypatch.setattr(resize_module, "_CUBIC_A", -0.5)
    else:
        monkeypatch.setattr(
            clip_module, "resize", lambda x, size, method, **_: original(x, size, method, True)
        )
    with torch.no_grad():
        theirs = reference.get_image_features(
            to_torch(image), interpolate_pos_encoding=True
        ).pooler_output.numpy()
    with pytest.raises(AssertionError, match="rel_l2"):
        assert_parity(call(clip, "encode_image", image), theirs)
    resize_module.resize_matrix.cache_clear()


# Source layouts.


def same_weights(a: Clip, b: Clip) -> None:
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openai_layout(clip, reference, prefix):
    tensors = {**openai_names(state_dict(reference)), **openai_scalars(SMALL)}
    tensors = {prefix + key: value for key, value in tensors.items()}
    source = rules_for(tensors, overrides=HEADS)
    assert source.key_names == "openai"
    assert source.config == SMALL
    assert sorted(source.ignored) == sorted(prefix + key for key in openai_scalars(SMALL))
    same_weights(convert(tensors, overrides=HEADS), clip)


def test_openai_half_precision(reference, image, token_ids):
    tensors = {
        key: value.astype(np.float16) for key, value in openai_names(state_dict(reference)).items()
    }
    clip = convert({**tensors, **openai_scalars(SMALL)}, overrides=HEADS)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip))} == {np.dtype(np.float32)}
    rounded = torch_model(SMALL).half().float()
    for ours, theirs, name in (
        (call(clip, "encode_image", image), reference_image(rounded, image), "image"),
        (call(clip, "encode_text", token_ids), reference_text(rounded, token_ids), "text"),
    ):
        assert_parity(ours, theirs, name=f"clip {name} from float16")


def test_openclip_layouts(reference, clip):
    """With a configuration beside it, and with the text tower under ``text.``."""
    tensors = openai_names(state_dict(reference))
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"width": 48, "head_width": 16, "layers": 4, "patch_size": 8},
        "text_cfg": {"heads": 2, "layers": 3, "width": 32},
    }
    config_json = {"model_cfg": model_cfg, "preprocess_cfg": {}}
    apart = {
        key if key == "logit_scale" or key.startswith("visual") else f"text.{key}": value
        for key, value in tensors.items()
    }
    for names in (
        {**tensors, "attn_mask": np.zeros((20, 20))},
        {**apart, "text.attn_mask": np.zeros((20, 20))},
    ):
        source = rules_for(names, config_json=config_json)
        assert source.key_names == "openclip"
        assert source.config == dataclasses.replace(SMALL, activation="gelu")
        assert len(source.ignored) == 1
        same_weights(convert(names, config_json=config_json), clip)
    quick = {"model_cfg": {**model_cfg, "quick_gelu": True}}
    assert infer_config(tensors, KeyNames("openai"), config_json=quick) == SMALL


def test_file_that_does_not_say_its_activation(reference):
    tensors = openai_names(state_dict(reference))
    with pytest.warns(UserWarning, match="does not say its activation"):
        assert rules_for(tensors, overrides=HEADS).config.activation == "quick_gelu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rules_for({**tensors, **openai_scalars(SMALL)}, overrides=HEADS)
        rules_for(tensors, overrides={**HEADS, "activation": "gelu"})


def test_hugging_face_position_ids_and_prefix(reference, clip):
    config_json = reference.config.to_dict()
    tensors = {f"clip.{key}": value for key, value in state_dict(reference).items()}
    tensors["clip.vision_model.embeddings.position_ids"] = np.arange(26)[None]
    tensors["clip.text_model.embeddings.position_ids"] = np.arange(20)[None]
    source = rules_for(tensors, config_json=config_json)
    assert (source.key_names, len(source.ignored)) == ("huggingface", 2)
    same_weights(convert(tensors, config_json=config_json), clip)


def test_saved_hugging_face_folder_is_read(reference, clip, tmp_path):
    """As ``save_pretrained`` writes it: defaults may be left out of config.json."""
    reference.save_pretrained(tmp_path)
    config_json = transformers.CLIPConfig.get_config_dict(tmp_path)[0]
    same_weights(convert(load_file(tmp_path / "model.safetensors"), config_json=config_json), clip)


def test_hugging_face_defaults_and_old_fields(reference):
    tensors = state_dict(reference)
    config_json = {
        "vision_config": {"num_hidden_layers": 4, "hidden_act": "gelu"},
        "text_config": {"num_hidden_layers": 9, "num_attention_heads": 16},
        "text_config_dict": {"num_hidden_layers": 3, "hidden_act": "gelu"},
    }
    config = infer_config(tensors, KeyNames("huggingface"), config_json=config_json)
    assert (config.vision.num_heads, config.text.num_heads) == (12, 8)
    assert (config.text.num_layers, config.activation, config.eps) == (3, "gelu", 1e-5)


@pytest.mark.parametrize(
    ("config_json", "message"),
    [
        ({"model_type": "siglip"}, "describes a siglip"),
        ({"vision_config": {"hidden_act": "gelu"}}, "hidden_act is gelu in the image tower"),
        (
            {k: {"hidden_act": "gelu_new"} for k in ("vision_config", "text_config")},
            "only quick_gelu and gelu",
        ),
        ({"vision_config": {"num_attention_heads": 5}}, "48 wide: it cannot have 5 heads"),
        ({"model_cfg": {"text_cfg": {"pool_type": "eos"}}}, "pool_type is eos"),
    ],
)
def test_config_that_does_not_fit(reference, config_json, message):
    with pytest.raises(SammiError, match=message):
        rules_for(state_dict(reference), config_json=config_json)


def test_heads_that_nothing_says(reference):
    tensors = {**openai_names(state_dict(reference)), **openai_scalars(SMALL)}
    with pytest.raises(SammiError, match=r"48 wide, not a multiple of 64.*give vision_heads"):
        rules_for(tensors)
    with pytest.raises(SammiError, match="heads: not among CLIP's overrides"):
        rules_for(tensors, overrides={"heads": 3})


@pytest.mark.parametrize(
    ("size", "heads"), [("vitb16", (12, 8)), ("vitl14", (16, 12)), ("vitl14_336", (16, 12))]
)
def test_real_sizes_are_inferred_from_shapes(size, heads):
    """OpenAI's files say nothing but shapes; no memory is spent on the tensors."""
    config = CLIP_SIZES[size]
    assert (config.vision.num_heads, config.text.num_heads) == heads
    expected = abstract_params(lambda: Clip(config, rngs=Keys(0)))
    params = {
        path: np.broadcast_to(np.zeros((), np.float16), want.shape)
        for path, want in expected.items()
    }
    rules = [rule for rule in clip_rules(config, KeyNames("openai")) if rule.layer in (None, 0)]
    tensors = {**invert_rules(params, rules), **openai_scalars(config)}
    for tower, depth in (("visual.", config.vision.num_layers), ("", config.text.num_layers)):
        tensors[f"{tower}transformer.resblocks.{depth - 1}.ln_1.weight"] = np.zeros(1)
    assert rules_for(tensors).config == config


@pytest.mark.parametrize(("size", "count"), [("vitb16", 149_620_737), ("vitl14_336", 427_944_193)])
def test_published_parameter_counts(size, count):
    params = abstract_params(lambda: Clip(CLIP_SIZES[size], rngs=Keys(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in params.values()) == count


def broken(tensors, change):
    tensors = dict(tensors)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.conv1.weight"), "missing visual.conv1.weight"),
        (lambda t: t.pop("visual.transformer.resblocks.2.ln_1.bias"), r"missing \(1\): .*2.ln_1"),
        (lambda t: t.pop("logit_scale"), "missing .*logit_scale"),
        (lambda t: t.update(extra=np.zeros(3)), r"unknown \(1\): extra"),
        (
            lambda t: t.update({"transformer.resblocks.0.attn.in_proj_weight": np.zeros((95, 32))}),
            "wrong shape .*in_proj_weight",
        ),
        (lambda t: t.update(positional_embedding=np.zeros(20)), "positional_embedding has shape"),
        (
            lambda t: t.update({"visual.positional_embedding": np.zeros((27, 48))}),
            "27 positions; expected square",
        ),
        (
            lambda t: [t.pop(k) for k in list(t) if k.startswith("transformer.")],
            r"missing transformer.resblocks.\*",
        ),
    ],
)
def test_damaged_checkpoints_are_refused(reference, change, message):
    tensors = {**openai_names(state_dict(reference)), **openai_scalars(SMALL)}
    with pytest.raises(SammiError, match=message) as error:
        convert(broken(tensors, change), overrides=HEADS)
    assert "\n" not in str(error.value)


def test_other_checkpoints_are_refused():
    with pytest.raises(SammiError, match="not a CLIP checkpoint"):
        detect_key_names(["image_encoder.pos_embed", "mask_decoder.iou_token.weight"])
    with pytest.raises(SammiError, match="ResNet"):
        detect_key_names(["visual.layer1.0.conv1.weight", "logit_scale"])


@pytest.mark.parametrize("name", ["openai", "openclip", "catseg", "huggingface"])
def test_tables_are_inverted_bit_for_bit(clip, name):
    expected = abstract_params(lambda: Clip(SMALL, rngs=Keys(0)))
    generator = np.random.default_rng(3)
    params = {p: generator.normal(size=w.shape).astype(np.float32) for p, w in expected.items()}
    rules = clip_rules(SMALL, KeyNames(name, "a.", "text." if name == "openclip" else ""))
    again = apply_rules(invert_rules(params, rules), rules, expected)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value)


# CAT-Seg's reference values.

CATSEG = "sem_seg_head.predictor.clip_model."


@pytest.fixture(scope="module")
def golden_files(goldens):
    tensors = load_file(goldens / "catseg_tiny.safetensors")
    return tensors, np.load(goldens / "catseg_tiny_eval.npz")


@pytest.fixture(scope="module")
def golden_clip(golden_files) -> Clip:
    """From CAT-Seg's names, inside a model of another root."""
    tensors = {key: v for key, v in golden_files[0].items() if key.startswith(CATSEG)}
    layout = KeyNames("catseg", CATSEG)
    assert detect_key_names(tensors) == layout
    config = infer_config(tensors, layout, overrides=HEADS)
    expected = abstract_params(lambda: Clip(config, rngs=Keys(0)))
    inside = {f"clip/{path}": want for path, want in expected.items()}
    params = apply_rules(tensors, clip_rules(config, layout, target="clip/"), inside)
    params = {path.removeprefix("clip/"): jnp.asarray(value) for path, value in params.items()}
    return build(lambda: Clip(config, rngs=Keys(0)), params)


def test_golden_dense(golden_clip, golden_files):
    golden = golden_files[1]
    table = golden_clip.vision.position_table((12, 12))
    assert_parity(table, golden["visual_pos_embed_resized"], name="golden positions")
    image = golden["eval_pool1/clip_in"].transpose(0, 2, 3, 1)
    features, taps = call(golden_clip, "encode_dense", image, taps=(1, 2))
    dense = golden["eval_pool1/dense"][:, 1:].reshape(features.shape)
    assert_parity(features, dense, name="golden dense")
    for i, tap in enumerate(taps):
        theirs = golden[f"eval_pool1/hidden{i}"][1:, 0].reshape(tap.shape)
        assert_parity(tap, theirs, name=f"golden tap {i}")


def test_golden_image_and_text(golden_clip, golden_files):
    golden = golden_files[1]
    image = golden["global/clip_in"].transpose(0, 2, 3, 1)
    ours = call(golden_clip, "encode_image", image)
    assert_parity(ours, golden["global/image_embed"], name="golden image")
    for split in ("test", "train"):
        text = np.asarray(call(golden_clip, "encode_text", golden[f"tokens_{split}"]))
        text = text / np.linalg.norm(text, axis=-1, keepdims=True)
        assert_parity(text, golden[f"text_{split}"], name=f"golden text {split}")


@pytest.mark.slow
def test_real_size():
    """ViT-B/16: image and text at the native size, dense at 384 as CAT-Seg uses it."""
    config = CLIP_SIZES["vitb16"]
    reference = torch_model(config)
    clip = convert(state_dict(reference), config_json=reference.config.to_dict())
    assert clip.config == config
    rng = np.random.default_rng(1)
    image = rng.normal(size=(1, 224, 224, 3)).astype(np.float32)
    large = rng.normal(size=(1, 384, 384, 3)).astype(np.float32)
    ids = np.zeros((2, 77), np.int32)
    ids[:, :12] = rng.integers(1, 49406, (2, 12))
    ids[:, 0], ids[0, 12], ids[1, 5] = 49406, 49407, 49407
    ours = call(clip, "encode_image", image)
    assert_parity(ours, reference_image(reference, image), name="ViT-B/16 image")
    ours = call(clip, "encode_text", ids)
    assert_parity(ours, reference_text(reference, ids), name="ViT-B/16 text")
    features, _ = call(clip, "encode_dense", large)
    with torch.no_grad():
        dense = torch_dense(reference, to_torch(large))[:, 1:].numpy()
    assert_parity(features, dense.reshape(1, 24, 24, -1), name="ViT-B/16 dense 384")
