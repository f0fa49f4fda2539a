"""CAT-Seg's tables: what is read from shapes, what from a description, and what is refused."""

import json

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.convert import clip
from sammi_jax.convert.catseg import rules_for
from sammi_jax.convert.catseg_keys import AGGREGATOR_PREFIX, CLIP_PREFIX, model_rules
from sammi_jax.convert.rules import apply_rules, invert_rules
from sammi_jax.errors import SammiError
from sammi_jax.models.sammi import Sammi
from sammi_jax.weights.params import abstract_params


@pytest.fixture
def facts(goldens):
    return json.loads((goldens / "catseg_tiny.json").read_text())


@pytest.fixture
def tensors(goldens):
    return load_file(goldens / "catseg_tiny.safetensors")


def test_description_gives_what_shapes_do_not(tensors, facts):
    source = rules_for(tensors, config_json=facts)
    config, aggregator = source.config, source.config.aggregator
    assert (config.clip_size, config.crop_size, config.taps) == (96, 96, (1, 2))
    assert (config.sliding.output_size, config.sliding.stride) == (160, 64)
    assert (config.clip.vision.num_heads, config.clip.text.num_heads) == (3, 2)
    assert (aggregator.window_size, aggregator.grid_size, aggregator.pad_length) == (6, 12, 256)
    assert rules_for(tensors, config_json=facts, overrides={"taps": (0, 3)}).config.taps == (0, 3)


def test_prefix_missing_mask_and_round_trip(tensors, facts):
    plain = {key: value for key, value in tensors.items() if not key.endswith("attn_mask")}
    wrapped = {f"module.{key}": value for key, value in plain.items()}
    source = rules_for(wrapped, config_json=facts)
    assert source.config == rules_for(tensors, config_json=facts).config
    assert not source.ignored
    expected = abstract_params(lambda: Sammi(source.config, rngs=nnx.Rngs(0)))
    params = apply_rules(wrapped, source.rules, expected, source.ignored)
    back = invert_rules(params, source.rules)
    assert back.keys() == wrapped.keys()
    for key, value in wrapped.items():
        np.testing.assert_array_equal(back[key], value)


def test_conversion_errors(tensors, facts):
    with pytest.raises(SammiError, match=r"4 layers.*layer_indexes"):
        rules_for(tensors, overrides={"vision_heads": 3, "text_heads": 2})
    with pytest.raises(SammiError, match="does not describe a CAT-Seg"):
        rules_for(tensors, config_json={"model_type": "clip"})
    oblong = json.loads(json.dumps(facts))
    oblong["config"]["agg"]["pooling"] = [2, 1]
    with pytest.raises(SammiError, match=r"\[2, 1\] is not a square"):
        rules_for(tensors, config_json=oblong)
    one_tap = json.loads(json.dumps(facts))
    one_tap["config"]["layer_indexes"] = [1]
    with pytest.raises(SammiError, match="does not describe a CAT-Seg"):
        rules_for(tensors, config_json=one_tap)
    with pytest.raises(SammiError, match="nonsense: not among"):
        rules_for(tensors, overrides={"nonsense": 1})
    for key in ("conv1.weight", "decoder2.conv.double_conv.0.weight"):
        broken = dict(tensors)
        del broken[AGGREGATOR_PREFIX + key]
        with pytest.raises(SammiError, match=f"missing {AGGREGATOR_PREFIX}{key}"):
            rules_for(broken, config_json=facts)
    extra = {**tensors, "sem_seg_head.extra": np.zeros(3)}
    source = rules_for(extra, config_json=facts)
    expected = abstract_params(lambda: Sammi(source.config, rngs=nnx.Rngs(0)))
    with pytest.raises(SammiError, match=r"unknown \(1\): sem_seg_head.extra"):
        apply_rules(extra, source.rules, expected, source.ignored)


@pytest.mark.parametrize(
    ("size", "keys", "total"), [("vitb16", 484, 154_289_378), ("vitl14_336", 652, 433_726_946)]
)
def test_released_sizes_are_recognized(size, keys, total):
    """From shapes alone: the published configuration, key count and parameter count."""
    config = SEGMENTER_SIZES[size]
    expected = abstract_params(lambda: Sammi(config, rngs=nnx.Rngs(0)))
    empty = {path: np.broadcast_to(np.float32(0), v.shape) for path, v in expected.items()}
    rules = model_rules(config, clip.KeyNames("catseg", CLIP_PREFIX))
    tensors = invert_rules(empty, rules)
    assert sum(np.size(value) for value in tensors.values()) == total
    for i in (0, 1):
        key = f"{AGGREGATOR_PREFIX}layers.{i}.swin_block.block_2.attn_mask"
        tensors[key] = np.zeros((4, 144, 144), "f")
    assert len(tensors) == keys
    source = rules_for(tensors)
    assert source.config == config
    assert len(source.ignored) == 2
