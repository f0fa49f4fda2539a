"""A CAT-Seg checkpoint's configuration and table, found from its tensors.

Sizes are read from shapes. What shapes do not say comes from overrides, else from a description
beside the checkpoint, else from the published configurations. The tables are in
`convert.catseg_keys`.
"""

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sammi_jax.config.model import (
    AggregatorConfig,
    ClipConfig,
    SegmenterConfig,
    SlidingConfig,
    check_sizes,
)
from sammi_jax.convert import clip
from sammi_jax.convert.catseg_keys import AGGREGATOR_PREFIX, CLIP_PREFIX, model_rules
from sammi_jax.convert.described import check_described
from sammi_jax.convert.rules import Source
from sammi_jax.errors import SammiError, reading

Tensors = Mapping[str, np.ndarray]

_AGGREGATOR_OVERRIDES = (
    "num_heads",
    "window_size",
    "grid_size",
    "pooling_size",
    "pad_length",
    "attention",
)
OVERRIDES = (
    *clip.OVERRIDES,
    *_AGGREGATOR_OVERRIDES,
    "taps",
    "crop_size",
    "sliding",
    "templates",
)

# Of the released models, by the image tower's depth: ViT-B/16 and ViT-L/14@336.
_TAPS = {12: (3, 7), 24: (7, 15)}


def aggregator_config(
    tensors: Tensors, known: Mapping[str, Any], prefix: str = AGGREGATOR_PREFIX
) -> AggregatorConfig:
    """Sizes of the aggregator from its tensors; ``known`` holds what shapes do not say.

    Raises:
        SammiError: a tensor that gives a size is missing or of another rank.
    """
    shape = lambda key, rank: _shape(tensors, prefix + key, rank)  # noqa: E731
    hidden_dim, num_templates = shape("conv1.weight", 4)[:2]
    decoders = [shape(f"decoder{i}.conv.double_conv.0.weight", 4) for i in (1, 2)]
    guidance = [shape(f"decoder_guidance_projection.{i}.0.weight", 4) for i in (0, 1)]
    sizes = {name: known[name] for name in _AGGREGATOR_OVERRIDES if name in known}
    return AggregatorConfig(
        hidden_dim=hidden_dim,
        num_templates=num_templates,
        num_layers=_num_layers(tensors, prefix),
        appearance_dim=shape("guidance_projection.0.weight", 4)[0],
        text_dim=shape("text_guidance_projection.0.weight", 2)[0],
        decoder_dims=(decoders[0][0], decoders[1][0]),
        decoder_guidance_dims=(guidance[0][1], guidance[1][1]),
        decoder_guidance_proj_dims=(guidance[0][0], guidance[1][0]),
        **{**sizes, **_window_sizes(tensors, prefix)},
    )


def rules_for(
    tensors: Tensors,
    *,
    config_json: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Source:
    """Configuration and table of a CAT-Seg checkpoint (`SegmenterConfig` without masks).

    Args:
        tensors: the state dictionary; its keys may all begin with ``module.``.
        config_json: a description beside it, as ``tests/goldens/catseg_tiny.json``:
            heads, pooling, taps and the rest that no shape shows. The released files have none.
        overrides: values of any of `OVERRIDES`. They come before ``config_json``, and after what
            the shapes say.

    Raises:
        SammiError: not a CAT-Seg, or one whose sizes cannot be found.
    """
    start = "module." if all(key.startswith("module.") for key in tensors) else ""
    known = {**_described(config_json), **_checked(overrides or {})}
    aggregator = aggregator_config(tensors, known, start + AGGREGATOR_PREFIX)
    inside = start + CLIP_PREFIX
    names = clip.detect_key_names(key for key in tensors if key.startswith(inside))
    clip_known = {name: known[name] for name in clip.OVERRIDES if name in known}
    clip_config = clip.infer_config(tensors, names, overrides=clip_known)
    ignored = {
        key: "the mask of shifted windows, which is computed"
        for key in tensors
        if key.startswith(start + AGGREGATOR_PREFIX) and key.endswith(".attn_mask")
    }
    ignored |= clip.ignored_keys(tensors, names)
    config = _segmenter_config(clip_config, aggregator, known)
    check_sizes(config)
    return Source(config, model_rules(config, names, start), ignored, "catseg")


def _segmenter_config(
    clip_config: ClipConfig, aggregator: AggregatorConfig, known: Mapping[str, Any]
) -> SegmenterConfig:
    default, depth = SegmenterConfig(), clip_config.vision.num_layers
    taps = known.get("taps") or _TAPS.get(depth)
    if taps is None:
        raise SammiError(
            f"no released CAT-Seg has a CLIP of {depth} layers, so it is unknown which two feed "
            "the decoder: put a .json with config.layer_indexes beside the checkpoint"
        )
    templates = known.get("templates", default.templates)
    if len(templates) != aggregator.num_templates:
        raise SammiError(
            f"trained with {aggregator.num_templates} prompt templates (input channels of conv1), "
            f"not {len(templates)}: give all of them in order with --templates FILE, one a line, "
            'or as "templates" in the .json beside the checkpoint'
        )
    crop_size = known.get("crop_size", default.crop_size)
    published = default.sliding if crop_size == default.crop_size else None
    return replace(
        default,
        clip=clip_config,
        aggregator=aggregator,
        crop_size=crop_size,
        clip_size=aggregator.grid_size * clip_config.vision.patch_size,
        taps=tuple(taps),
        templates=templates,
        sliding=known.get("sliding", published),
    )


def _checked(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(set(overrides) - set(OVERRIDES))
    if unknown:
        raise SammiError(
            f"{', '.join(unknown)}: not among CAT-Seg's overrides {', '.join(OVERRIDES)}"
        )
    return overrides


def _described(description: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the file beside the checkpoint says, by the names of our fields."""
    if description is None:
        return {}
    mend = "correct it or move it elsewhere"
    with reading("the .json beside the checkpoint", mend, "does not describe a CAT-Seg"):
        found = _by_our_names(description)
        taps, sliding = found.pop("taps", None), found.pop("sliding", None)
        templates = found.pop("templates", None)
        found = check_described(found)
        if taps is not None:
            first, second = map(operator.index, taps)
            found["taps"] = (first, second)
        if sliding:
            sizes = (operator.index(_side(sliding["out_res"])), operator.index(sliding["stride"]))
            found["sliding"] = SlidingConfig(*sizes)
        return found if templates is None else found | {"templates": templates}


def _by_our_names(description: Mapping[str, Any]) -> dict[str, Any]:
    config = description["config"]
    towers, head = config["clip"], config["agg"]
    known = {
        "vision_heads": towers.get("vision_heads"),
        "text_heads": towers.get("transformer_heads"),
        "num_heads": head.get("num_heads"),
        "window_size": head.get("window"),
        "grid_size": _side(head.get("grid")),
        "pooling_size": _side(head.get("pooling")),
        "pad_length": description.get("pad_len"),
        "attention": head.get("attention_type"),
        "taps": config.get("layer_indexes"),
        "crop_size": config.get("crop"),
        "templates": _templates(description),
        "sliding": description.get("sliding"),
    }
    return {name: value for name, value in known.items() if value is not None}


def _templates(description: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The prompt templates: a list ``templates``, or a single ``template``."""
    if "templates" in description:
        return tuple(map(str, description["templates"]))
    return (str(description["template"]),) if "template" in description else None


def _side(size: Any) -> Any:
    """Side of a square given as [side, side]."""
    if size is not None and (len(size) != 2 or size[0] != size[1]):
        raise SammiError(f"the .json beside the checkpoint: {size} is not a square [side, side]")
    return size and size[0]


def _shape(tensors: Tensors, key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors:
        raise SammiError(f"the checkpoint does not fit the model: missing {key}")
    shape = np.shape(tensors[key])
    if len(shape) != rank or 0 in shape:
        raise SammiError(
            f"the checkpoint does not fit the model: {key} has shape {shape}, not {rank} axes, "
            "none of them empty"
        )
    return shape


def _num_layers(tensors: Tensors, prefix: str) -> int:
    """One more than the largest layer number among the keys, so that gaps show as missing keys."""
    pattern = re.compile(re.escape(prefix) + r"layers\.(\d+)\.")
    numbers = [int(match[1]) for match in map(pattern.match, tensors) if match]
    if not numbers:
        raise SammiError(f"the checkpoint does not fit the model: missing {prefix}layers.*")
    return max(numbers) + 1


def _window_sizes(tensors: Tensors, prefix: str) -> dict[str, int]:
    """Sides of a window and of the cost map, where the mask of shifted windows is stored."""
    key = f"{prefix}layers.0.swin_block.block_2.attn_mask"
    if key not in tensors:
        return {}
    windows, tokens, _ = _shape(tensors, key, 3)
    window = math.isqrt(tokens)
    return {"window_size": window, "grid_size": window * math.isqrt(windows)}
