"""A Segment Anything checkpoint's configuration and table, found from its tensors.

Sizes are read from shapes. What shapes do not say (the decoder's heads and eps) comes from
overrides, else from the ``config.json`` beside the checkpoint, else from the original code.
The table is in `convert.sam_keys`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sammi_jax.config.fields import from_dict, to_dict
from sammi_jax.config.model import SamConfig, check_sizes
from sammi_jax.convert.rules import Source
from sammi_jax.convert.sam_keys import KeyNames, sam_rules
from sammi_jax.errors import SammiError, reading

Tensors = Mapping[str, np.ndarray]

_MARKS: dict[str, KeyNames] = {
    "image_encoder.patch_embed.proj.weight": "meta",
    "vision_encoder.patch_embed.projection.weight": "huggingface",
}

# The two-way transformer's norms: torch's default in the original, another one in the port.
_DECODER_EPS: dict[KeyNames, float] = {"meta": 1e-5, "huggingface": 1e-6}

# What `models.sam` has no switch for, as config.json calls it.
_ASSUMED = {
    "vision_config": {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "use_abs_pos": True,
        "use_rel_pos": True,
    },
    "prompt_encoder_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6},
    "mask_decoder_config": {"hidden_act": "relu", "attention_downsample_rate": 2},
}

_FOURIER = "shared_image_embedding.positional_embedding"
_FOURIER_COPY = "prompt_encoder.shared_embedding.positional_embedding"


def rules_for(
    tensors: Tensors,
    *,
    config_json: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Source:
    """Recognize a SAM checkpoint: its configuration and table.

    Args:
        tensors: the state dictionary.
        config_json: Hugging Face's configuration file beside it.
        overrides: fields of `SamConfig`, which come before everything else.

    Raises:
        SammiError: not a SAM, or one that `models.sam.sam.Sam` cannot hold.
    """
    names: KeyNames | None = next((_MARKS[key] for key in _MARKS if key in tensors), None)
    if names is None:
        raise SammiError(f"not a Segment Anything checkpoint: it has no {' and no '.join(_MARKS)}")
    described = config_json if names == "huggingface" and config_json else {}
    with reading("config.json", "correct it, or move it elsewhere", "does not describe a SAM"):
        _check_assumptions(described)
        decoder = described.get("mask_decoder_config", {})
        found = {
            "decoder_eps": decoder.get("layer_norm_eps", _DECODER_EPS[names]),
            "decoder_heads": decoder.get("num_attention_heads", SamConfig().decoder_heads),
        }
    sizes = to_dict(_SizeReader(tensors, names).config())
    config = from_dict(SamConfig, {**sizes, **found, **(overrides or {})})
    check_sizes(config)
    return Source(config, sam_rules(config, names), _ignored(tensors, names), names)


def _check_assumptions(described: Mapping[str, Any]) -> None:
    for section, fields in _ASSUMED.items():
        for name, value in fields.items():
            found = described.get(section, {}).get(name, value)
            if found != value:
                raise SammiError(
                    f"config.json: {section}.{name} is {found!r}; only {value!r} can be converted"
                )


def _ignored(tensors: Tensors, names: KeyNames) -> dict[str, str]:
    """Keys of the checkpoint that are dropped, with the reason.

    Raises:
        SammiError: the second copy of the Fourier matrix differs from the first.
    """
    if names == "meta":
        constants = [key for key in ("pixel_mean", "pixel_std") if key in tensors]
        return dict.fromkeys(constants, "constant of the preprocessing")
    if _FOURIER_COPY not in tensors:
        return {}
    if _FOURIER in tensors and not np.array_equal(tensors[_FOURIER], tensors[_FOURIER_COPY]):
        raise SammiError(f"{_FOURIER_COPY} differs from {_FOURIER}: the two must be equal")
    return {_FOURIER_COPY: f"copy of {_FOURIER}"}


class _SizeReader:
    """Reads a configuration from the shapes of a checkpoint's tensors."""

    def __init__(self, tensors: Tensors, names: KeyNames):
        self.tensors = tensors
        self.is_meta = names == "meta"

    def config(self) -> SamConfig:
        """Every field that shapes determine; the others at their defaults."""
        encoder = "image_encoder." if self.is_meta else "vision_encoder."
        patch = encoder + ("patch_embed.proj" if self.is_meta else "patch_embed.projection")
        width, _, patch_size, _ = self._shape(f"{patch}.weight", 4)
        _, grid, _, _ = self._shape(f"{encoder}pos_embed", 4)
        blocks = encoder + ("blocks" if self.is_meta else "layers")
        num_layers = self._count(blocks)
        tables = [self._shape(f"{blocks}.{i}.attn.rel_pos_h", 2) for i in range(num_layers)]
        num_stages, window = _stages([length for length, _ in tables], grid)
        mask = "mask_downscaling.3" if self.is_meta else "mask_embed.conv2"
        head = "mask_decoder.iou_prediction_head"
        layers = self._count(f"{head}.layers")
        first = "layers.0" if self.is_meta else "proj_in"
        return SamConfig(
            image_size=grid * patch_size,
            patch_size=patch_size,
            width=width,
            num_layers=num_layers,
            num_heads=max(1, width // tables[0][1]),
            num_stages=num_stages,
            mlp_ratio=self._shape(f"{blocks}.0.mlp.lin1.weight", 2)[0] // width,
            window_size=window,
            out_channels=self._shape("mask_decoder.iou_token.weight", 2)[1],
            decoder_layers=self._count("mask_decoder.transformer.layers"),
            decoder_mlp_dim=self._shape("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
            num_multimask_outputs=self._shape("mask_decoder.mask_tokens.weight", 2)[0] - 1,
            iou_head_depth=layers if self.is_meta else layers + 2,
            iou_head_hidden_dim=self._shape(f"{head}.{first}.weight", 2)[0],
            mask_in_channels=self._shape(f"prompt_encoder.{mask}.weight", 4)[0],
        )

    def _shape(self, key: str, rank: int) -> tuple[int, ...]:
        if key not in self.tensors:
            raise SammiError(f"the checkpoint lacks {key}: it is incomplete or of another model")
        shape = tuple(self.tensors[key].shape)
        if len(shape) != rank or 0 in shape:
            raise SammiError(f"{key} has shape {shape}; expected {rank} axes, none of them empty")
        return shape

    def _count(self, prefix: str) -> int:
        """How many numbered modules there are under a prefix."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        found = [int(match[1]) for key in self.tensors if (match := pattern.match(key))]
        return max(found, default=-1) + 1


def _stages(lengths: list[int], grid: int) -> tuple[int, int]:
    """Number of stages and window size from the lengths of the blocks' relative positions.

    Raises:
        SammiError: the global blocks are not evenly spaced, or the windows differ in size.
    """
    whole = [i for i, length in enumerate(lengths) if length == 2 * grid - 1]
    windowed = sorted({length for length in lengths if length != 2 * grid - 1})
    per_stage = len(lengths) // max(1, len(whole))
    if not whole and len(windowed) > 1:
        raise SammiError(
            f"its relative positions are of a grid of {(windowed[-1] + 1) // 2} cells a side, the "
            f"absolute ones of {grid}: a SAM of another input size, whose positions were resized "
            "in part; convert the original checkpoint"
        )
    if not whole or whole != list(range(per_stage - 1, len(lengths), per_stage)):
        raise SammiError(
            f"global attention in the blocks {whole} of {len(lengths)}: "
            "only evenly spaced ones, the last block included, can be converted"
        )
    if len(windowed) > 1:
        sizes = ", ".join(str((length + 1) // 2) for length in windowed)
        raise SammiError(f"windows of different sizes ({sizes}): only one size can be converted")
    return len(whole), (windowed[0] + 1) // 2 if windowed else SamConfig().window_size
