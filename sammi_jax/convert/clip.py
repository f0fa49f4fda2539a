"""A CLIP checkpoint's configuration and table, found from its tensors.

Sizes are read from shapes. What shapes do not say (heads, activation, eps) comes from overrides,
else from the configuration beside the checkpoint (Hugging Face's ``config.json`` or OpenCLIP's
``open_clip_config.json``), else from the rules of OpenAI's models. The tables are in
`convert.clip_keys`.
"""

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from sammi_jax.config.model import ClipConfig, ClipTextConfig, ClipVisionConfig, check_sizes
from sammi_jax.convert.clip_keys import KeyNames, clip_rules, detect_key_names, ignored_keys
from sammi_jax.convert.described import check_described
from sammi_jax.convert.rules import Source
from sammi_jax.errors import SammiError, reading

__all__ = [
    "KeyNames",
    "clip_rules",
    "detect_key_names",
    "ignored_keys",
    "infer_config",
    "rules_for",
]

Tensors = Mapping[str, np.ndarray]

OVERRIDES = ("vision_heads", "text_heads", "activation", "eps")

# Image towers of OpenCLIP whose heads are not 64 wide (its model_configs), by width.
_WIDE_HEADS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def rules_for(
    tensors: Tensors,
    *,
    config_json: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Source:
    """Recognize a CLIP checkpoint: its configuration and table.

    Args:
        tensors: the state dictionary.
        config_json: the configuration file beside it.
        overrides: values of any of `OVERRIDES`, which come before everything else.

    Raises:
        SammiError: not a CLIP, or one that `models.clip.Clip` cannot hold.
    """
    names = detect_key_names(tensors)
    config = infer_config(tensors, names, config_json=config_json, overrides=overrides)
    name = names.name if _open_clip_model(config_json) is None else "openclip"
    return Source(config, clip_rules(config, names), ignored_keys(tensors, names), name)


def infer_config(
    tensors: Tensors,
    names: KeyNames,
    *,
    config_json: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ClipConfig:
    """The configuration of a CLIP checkpoint; arguments and errors as for `rules_for`."""
    what = "the JSON file beside it"
    with reading(what, "correct it, or move it elsewhere", "does not describe a CLIP"):
        described = check_described(_described(config_json))
    known = {**described, **_checked(overrides or {})}
    if "activation" not in known:
        known["activation"] = _guess_activation(tensors, names)
    if known["activation"] not in ("quick_gelu", "gelu"):
        raise SammiError(
            f"CLIP with the activation {known['activation']}: only quick_gelu and gelu are known"
        )
    shapes = _our_shapes(tensors, names)
    with reading(what, "correct it, or move it elsewhere", "does not describe a CLIP"):
        _check_described(config_json, shapes)
    width = shapes["vision/patch_embed/projection/kernel"][1]
    patch_size, grid_size = _squares(shapes)
    vocab_size, text_width = shapes["text/token_embedding"]
    vision = ClipVisionConfig(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        width=width,
        num_layers=known.get("vision_layers") or _num_layers(tensors, names, "vision"),
        num_heads=_num_heads("vision", width, known),
    )
    text = ClipTextConfig(
        vocab_size=vocab_size,
        context_length=shapes["text/position_embedding"][0],
        width=text_width,
        num_layers=known.get("text_layers") or _num_layers(tensors, names, "text"),
        num_heads=_num_heads("text", text_width, known),
    )
    embed_dim = shapes["vision/projection/kernel"][1]
    config = ClipConfig(vision, text, embed_dim, known["activation"], known.get("eps", 1e-5))
    check_sizes(config)
    return config


def _checked(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(set(overrides) - set(OVERRIDES))
    if unknown:
        raise SammiError(f"{', '.join(unknown)}: not among CLIP's overrides {', '.join(OVERRIDES)}")
    return overrides


def _described(config_json: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the file beside the checkpoint says, by the names of our fields."""
    if config_json is None:
        return {}
    model = _open_clip_model(config_json)
    if model is not None:
        return _described_by_openclip(model)
    if not {"vision_config", "text_config", "model_type"} & set(config_json):
        raise SammiError(
            "the JSON file beside it describes no CLIP: it has neither vision_cfg (OpenCLIP) nor "
            "vision_config (Hugging Face); remove it, or give the one that belongs to the weights"
        )
    return _described_by_hugging_face(config_json)


def _check_described(
    config_json: Mapping[str, Any] | None, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """OpenCLIP's description must be of these weights: heads follow from its widths."""
    model = _open_clip_model(config_json)
    if model is None:
        return
    found = {
        "vision_cfg.width": shapes["vision/patch_embed/projection/kernel"][1],
        "text_cfg.width": shapes["text/token_embedding"][1],
        "embed_dim": shapes["vision/projection/kernel"][1],
    }
    for name, value in found.items():
        section, _, field = name.rpartition(".")
        said = (model.get(section, {}) if section else model).get(field, value)
        if said != value:
            raise SammiError(
                f"OpenCLIP's description is of another model: {name} is {said} there and {value} "
                "in the weights"
            )


def _open_clip_model(config_json: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """OpenCLIP's description, alone as in its model_configs or inside open_clip_config.json."""
    config = config_json or {}
    if "model_cfg" in config:
        return config["model_cfg"]
    return config if {"vision_cfg", "text_cfg"} <= set(config) else None


def _described_by_openclip(model: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are absent have the defaults of open_clip's CLIPVisionCfg and CLIPTextCfg."""
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for section, ours in ((vision, "tok"), (text, "argmax")):
        other = sorted(
            key for key in section
            if key in ("act_kwargs", "norm_kwargs") or key.endswith("_model_name")
        )  # fmt: skip
        if other:
            raise SammiError(f"OpenCLIP's description has {other[0]}, which cannot be converted")
        pooling = section.get("pool_type", ours)
        if pooling != ours:  # the same tensors, but another token is the feature
            raise SammiError(
                f"OpenCLIP's description: pool_type is {pooling}; only {ours} is known"
            )
    return {
        "vision_heads": vision.get("width", 768) // vision.get("head_width", 64),
        "text_heads": text.get("heads", 8),
        "vision_layers": vision.get("layers", 12),
        "text_layers": text.get("layers", 12),
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }


def _described_by_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are absent have the defaults of transformers' CLIPVisionConfig, CLIPTextConfig.

    Older files hold a ``*_config_dict`` as well, and it is the one that transformers obeys.
    """
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise SammiError(f"config.json describes a {kind}: not a CLIP with both towers")
    towers = {}
    for tower in ("vision", "text"):
        old = config.get(f"{tower}_config_dict")
        towers[tower] = (config.get(f"{tower}_config") or {}) if old is None else old
    shared = {}
    for name, field, default in (
        ("activation", "hidden_act", "quick_gelu"),
        ("eps", "layer_norm_eps", 1e-5),
    ):
        values = {tower: section.get(field, default) for tower, section in towers.items()}
        if values["vision"] != values["text"]:
            raise SammiError(
                f"config.json: {field} is {values['vision']} in the image tower and "
                f"{values['text']} in the text tower; CLIP has one for both"
            )
        shared[name] = values["vision"]
    return {
        "vision_heads": towers["vision"].get("num_attention_heads", 12),
        "text_heads": towers["text"].get("num_attention_heads", 8),
        "vision_layers": towers["vision"].get("num_hidden_layers", 12),
        "text_layers": towers["text"].get("num_hidden_layers", 12),
        **shared,
    }


def is_openai(tensors: Tensors) -> bool:
    """Whether it is one of OpenAI's own files, whose activation and heads are known."""
    return any(key.endswith("input_resolution") for key in tensors)


def _guess_activation(tensors: Tensors, names: KeyNames) -> str:
    """OpenAI's QuickGELU; OpenCLIP's own models have the exact GELU under the same names."""
    if names.name != "catseg" and not is_openai(tensors):
        warnings.warn(
            "this CLIP checkpoint does not say its activation; it is assumed to be OpenAI's "
            "quick_gelu. Most OpenCLIP models have gelu: put their open_clip_config.json beside "
            "it, or say --activation gelu",
            stacklevel=3,
        )
    return "quick_gelu"


def _our_shapes(tensors: Tensors, names: KeyNames) -> dict[str, tuple[int, ...]]:
    """Shapes of our parameters outside the layers, by path."""
    shapes, missing = {}, []
    for source, target, transform in names.singles:
        if not target.endswith(("embedding", "kernel")) or target == "vision/class_embedding":
            continue
        if source not in tensors:
            missing.append(source)
            continue
        rank = 4 if target.startswith("vision/patch_embed") else 2
        if np.ndim(tensors[source]) != rank or np.size(tensors[source]) == 0:
            raise SammiError(
                f"the checkpoint does not fit the model: {source} has shape "
                f"{np.shape(tensors[source])}, not {rank} axes, none of them empty"
            )
        shapes[target] = transform.forward(np.asarray(tensors[source])).shape
    if missing:
        raise SammiError(f"the checkpoint does not fit the model: missing {', '.join(missing)}")
    return shapes


def _squares(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Sides of a patch, in pixels, and of the native grid, in patches."""
    values = shapes["vision/patch_embed/projection/kernel"][0]
    positions = shapes["vision/position_embedding"][0]
    patch_size, grid_size = math.isqrt(values // 3), math.isqrt(max(positions - 1, 0))
    if 3 * patch_size**2 != values or 1 + grid_size**2 != positions:
        raise SammiError(
            f"CLIP's image tower has patches of {values} values and {positions} positions; "
            "expected square RGB patches, and a class token before a square grid of them"
        )
    return patch_size, grid_size


def _num_layers(tensors: Tensors, names: KeyNames, tower: str) -> int:
    """One more than the largest layer number among the keys, so that gaps show as missing keys."""
    pattern = re.compile(re.escape(names.blocks[tower]).replace(r"\{\}", r"(\d+)"))
    numbers = [int(match[1]) for match in map(pattern.match, tensors) if match]
    if not numbers:
        raise SammiError(
            f"the checkpoint does not fit the model: missing {names.blocks[tower].format('*')}*"
        )
    return max(numbers) + 1


def _num_heads(tower: str, width: int, known: Mapping[str, Any]) -> int:
    head_width = _WIDE_HEADS.get(width, 64) if tower == "vision" else 64
    heads = known.get(f"{tower}_heads")
    if heads is None and width % head_width:
        raise SammiError(
            f"CLIP's {tower} tower is {width} wide, not a multiple of {head_width}, so its number "
            f"of heads is unknown: give {tower}_heads"
        )
    heads = width // head_width if heads is None else heads
    if heads < 1 or width % heads:
        raise SammiError(f"CLIP's {tower} tower is {width} wide: it cannot have {heads} heads")
    return heads
