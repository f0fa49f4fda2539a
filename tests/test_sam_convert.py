import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

from sammi_jax.convert import sam as convert_sam
from sammi_jax.convert.api import read_source
from sammi_jax.convert.rules import apply_rules, invert_rules
from sammi_jax.errors import SammiError
from sammi_jax.models.sam.sam import Sam
from sammi_jax.weights.params import abstract_params
from tests.parity import assert_parity
from tests.sam_reference import SIDE, SMALL, HfConfig, convert, make_model, meta_tensors, tensors_of

COPY = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module")
def reference():
    return make_model(HfConfig(**SMALL))


@pytest.fixture
def tensors(reference):
    return tensors_of(reference)


def test_both_layouts_give_the_same_parameters(reference, tensors):
    _, theirs, hf = convert(tensors, reference.config.to_dict())
    _, ours, meta = convert(meta_tensors(tensors), overrides={"decoder_heads": 2})
    assert (hf.key_names, meta.key_names) == ("huggingface", "meta")
    assert (hf.config.decoder_eps, meta.config.decoder_eps) == (1e-6, 1e-5)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)


def test_meta_layout_computes_what_the_original_does(rng):
    """transformers' port is the original once its decoder norms have the original's eps."""
    config = HfConfig(**SMALL)
    config.mask_decoder_config.layer_norm_eps = 1e-5
    model = make_model(config)
    ours, _, _ = convert(meta_tensors(tensors_of(model)), overrides={"decoder_heads": 2})
    image = rng.normal(size=(1, SIDE, SIDE, 3)).astype("f")
    points = rng.uniform(0, SIDE, (1, 2, 2)).astype("f")
    with torch.no_grad():
        out = model(
            torch.tensor(image).movedim(-1, 1),
            input_points=torch.tensor(points)[:, :, None],
            input_labels=torch.ones(1, 2, 1, dtype=torch.int32),
        )
    masks, iou = ours.decode(
        ours.encode_image(jnp.asarray(image)), jnp.asarray(points), jnp.ones((1, 2), jnp.int32)
    )
    assert_parity(masks, out.pred_masks, name="sam, Meta's layout, image to masks")
    assert_parity(iou, out.iou_scores, name="sam, Meta's layout, image to iou")


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
def test_table_inverts(tensors, layout):
    tensors = meta_tensors(tensors) if layout == "meta" else tensors
    _, params, source = convert(tensors, overrides={"decoder_heads": 2})
    back = invert_rules(params, source.rules)
    assert back.keys() == tensors.keys() - source.ignored.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key], err_msg=key)


def test_ignored_keys(tensors):
    assert list(convert_sam.rules_for(tensors).ignored) == [COPY]
    del tensors[COPY]
    assert not convert_sam.rules_for(tensors).ignored
    tensors[COPY] = tensors["shared_image_embedding.positional_embedding"] + 1
    with pytest.raises(SammiError, match="must be equal"):
        convert_sam.rules_for(tensors)
    meta = {**meta_tensors(tensors), "pixel_mean": np.zeros((3, 1, 1), "f")}
    assert list(convert_sam.rules_for(meta).ignored) == ["pixel_mean"]


@pytest.mark.parametrize("rename", [dict, meta_tensors])
def test_missing_extra_and_wrong_keys(tensors, rename):
    whole = rename(tensors)
    config = convert_sam.rules_for(whole).config
    expected = abstract_params(lambda: Sam(config, rngs=nnx.Rngs(0)))

    def apply(tensors):
        source = convert_sam.rules_for(tensors)
        return apply_rules(tensors, source.rules, expected, source.ignored)

    assert apply(whole)
    for key in whole.keys() - {COPY}:
        with pytest.raises(SammiError):
            apply({k: v for k, v in whole.items() if k != key})
    with pytest.raises(SammiError, match=r"unknown .*extra"):
        apply({**whole, "extra": np.zeros(1)})
    with pytest.raises(SammiError, match="wrong shape"):
        apply({k: v[:-1] if "lin2.bias" in k else v for k, v in whole.items()})


def test_other_checkpoints():
    with pytest.raises(SammiError, match="not a Segment Anything checkpoint"):
        convert_sam.rules_for({"visual.proj": np.zeros((2, 2))})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("vision_config", "layer_norm_eps", 1e-5),
        ("prompt_encoder_config", "hidden_act", "relu"),
        ("mask_decoder_config", "attention_downsample_rate", 4),
    ],
)
def test_unknown_variants_are_refused(reference, tensors, section, name, value):
    described = reference.config.to_dict()
    described[section][name] = value
    with pytest.raises(SammiError, match=rf"{section}\.{name}"):
        convert_sam.rules_for(tensors, config_json=described)


def test_irregular_global_blocks_are_refused():
    config = HfConfig(**SMALL)
    for indices in ([1, 5], [0, 3], [2]):
        config.vision_config.global_attn_indexes = indices
        with pytest.raises(SammiError, match="evenly spaced"):
            convert_sam.rules_for(tensors_of(make_model(config)))


def test_unknown_override(tensors):
    with pytest.raises(SammiError, match="did you mean decoder_heads"):
        convert_sam.rules_for(tensors, overrides={"decoder_head": 2})


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("image_encoder.patch_embed.seq.0.c.weight", "MobileSAM"),
        ("mask_decoder.hf_token.weight", "SAM-HQ"),
        ("image_encoder.trunk.pos_embed", "SAM 2"),
    ],
)
def test_relatives_are_named(tmp_path, key, title):
    keys = ("image_encoder.patch_embed.proj.weight", "mask_decoder.iou_token.weight", key)
    save_file({name: np.zeros(2, np.float32) for name in keys}, tmp_path / "sam.safetensors")
    with pytest.raises(SammiError, match=rf"sam\.safetensors: is a {title} checkpoint, another"):
        read_source(tmp_path / "sam.safetensors", ("sam",))


def test_resized_positions_are_named(tensors):
    resized = meta_tensors(tensors)
    key = "image_encoder.pos_embed"
    batch, height, width, channels = resized[key].shape
    resized[key] = np.zeros((batch, 2 * height, 2 * width, channels), np.float32)
    with pytest.raises(SammiError, match="a SAM of another input size"):
        convert_sam.rules_for(resized)
