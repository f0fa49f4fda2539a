"""Segment Anything checkpoints: the table of which source tensor fills which of our parameters.

Meta's files and Hugging Face's hold the same tensors under two sets of names
(facebookresearch/segment-anything, segment_anything/modeling; huggingface/transformers,
models/sam/modeling_sam.py). One table gives both: a row is (Meta's name, Hugging Face's name, our
path, which tensors it is).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sammi_jax.config.model import SamConfig
from sammi_jax.convert.rules import (
    CONV,
    CONV_TRANSPOSE,
    IDENTITY,
    LINEAR,
    PATCH_EMBED,
    Rule,
    Transform,
)

KeyNames = Literal["meta", "huggingface"]
Row = tuple[str, str, str, str]


def _patches(side: int) -> Transform:
    """A convolution whose stride is the side of its kernel, as a matrix."""
    return Transform(
        f"conv [out, in, {side}, {side}] -> [{side}*{side}*in, out]",
        lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
        lambda a: a.reshape(side, side, -1, a.shape[1]).transpose(3, 2, 0, 1),
    )


_FIRST = Transform("[1, ...] -> [...]", lambda a: a.squeeze(0), lambda a: a[None])

# Suffix of the source, suffix of our path, transform, part of the source.
_WHOLE = (0, 1)
_BIAS = (".bias", "/bias", IDENTITY, _WHOLE)
_KINDS: dict[str, list[tuple[str, str, Transform, tuple[int, int]]]] = {
    "tensor": [("", "", IDENTITY, _WHOLE)],
    "tensor of one": [("", "", _FIRST, _WHOLE)],
    "embedding": [(".weight", "", IDENTITY, _WHOLE)],
    "embedding of one": [(".weight", "", _FIRST, _WHOLE)],
    "norm": [(".weight", "/scale", IDENTITY, _WHOLE), _BIAS],
    "linear": [(".weight", "/kernel", LINEAR, _WHOLE), _BIAS],
    "qkv": [
        (f".{source}", f"/{name}/{target}", transform, (part, 3))
        for part, name in enumerate(("query", "key", "value"))
        for source, target, transform in (("weight", "kernel", LINEAR), ("bias", "bias", IDENTITY))
    ],
    "patch embedding": [(".weight", "/kernel", PATCH_EMBED, _WHOLE), _BIAS],
    "conv 2x2": [(".weight", "/kernel", _patches(2), _WHOLE), _BIAS],
    "conv 1x1": [(".weight", "/kernel", _patches(1), _WHOLE), _BIAS],
    "conv 1x1, no bias": [(".weight", "/kernel", _patches(1), _WHOLE)],
    "conv 3x3, no bias": [(".weight", "/kernel", CONV, _WHOLE)],
    "transposed conv": [(".weight", "/kernel", CONV_TRANSPOSE, _WHOLE), _BIAS],
}


@dataclass(frozen=True)
class _Section:
    """Rows under common prefixes."""

    meta: str
    huggingface: str
    ours: str
    rows: list[Row]

    def rules(self, names: KeyNames, layer: int | None = None) -> Iterator[Rule]:
        """The rules of one set of key names; ``layer`` is the index in a Stack."""
        is_meta = names == "meta"
        prefix = self.meta if is_meta else self.huggingface
        for meta, huggingface, ours, kind in self.rows:
            name = prefix + (meta if is_meta else huggingface)
            for source, target, transform, part in _KINDS[kind]:
                yield Rule(name + source, self.ours + ours + target, transform, layer, part)


_ENCODER: list[Row] = [
    ("patch_embed.proj", "patch_embed.projection", "patch_embed/projection", "patch embedding"),
    ("pos_embed", "pos_embed", "pos_embed", "tensor of one"),
    ("neck.0", "neck.conv1", "neck/conv1", "conv 1x1, no bias"),
    ("neck.1", "neck.layer_norm1", "neck/norm1", "norm"),
    ("neck.2", "neck.conv2", "neck/conv2", "conv 3x3, no bias"),
    ("neck.3", "neck.layer_norm2", "neck/norm2", "norm"),
]
_BLOCK: list[Row] = [
    ("norm1", "layer_norm1", "norm1", "norm"),
    ("attn.qkv", "attn.qkv", "attention", "qkv"),
    ("attn.rel_pos_h", "attn.rel_pos_h", "attention/rel_pos_h", "tensor"),
    ("attn.rel_pos_w", "attn.rel_pos_w", "attention/rel_pos_w", "tensor"),
    ("attn.proj", "attn.proj", "attention/out", "linear"),
    ("norm2", "layer_norm2", "norm2", "norm"),
    ("mlp.lin1", "mlp.lin1", "mlp/fc1", "linear"),
    ("mlp.lin2", "mlp.lin2", "mlp/fc2", "linear"),
]
_PROMPTS: list[Row] = [
    ("not_a_point_embed", "not_a_point_embed", "not_a_point_embed", "embedding of one"),
    ("no_mask_embed", "no_mask_embed", "no_mask_embed", "embedding of one"),
    ("mask_downscaling.0", "mask_embed.conv1", "mask_downscaling/conv1/projection", "conv 2x2"),
    ("mask_downscaling.1", "mask_embed.layer_norm1", "mask_downscaling/norm1", "norm"),
    ("mask_downscaling.3", "mask_embed.conv2", "mask_downscaling/conv2/projection", "conv 2x2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2", "mask_downscaling/norm2", "norm"),
    ("mask_downscaling.6", "mask_embed.conv3", "mask_downscaling/conv3", "conv 1x1"),
]
_DECODER: list[Row] = [
    ("iou_token", "iou_token", "iou_token", "embedding"),
    ("mask_tokens", "mask_tokens", "mask_tokens", "embedding"),
    ("output_upscaling.0", "upscale_conv1", "output_upscaling/conv1", "transposed conv"),
    ("output_upscaling.1", "upscale_layer_norm", "output_upscaling/norm", "norm"),
    ("output_upscaling.3", "upscale_conv2", "output_upscaling/conv2", "transposed conv"),
]


def _attention(name: str) -> list[Row]:
    parts = {"q": "query", "k": "key", "v": "value", "out": "out"}
    return [
        (f"{name}.{theirs}_proj", f"{name}.{theirs}_proj", f"{name}/{ours}", "linear")
        for theirs, ours in parts.items()
    ]


_TWO_WAY_BLOCK: list[Row] = [
    *_attention("self_attn"),
    *_attention("cross_attn_token_to_image"),
    *_attention("cross_attn_image_to_token"),
    *((f"norm{i}", f"layer_norm{i}", f"norm{i}", "norm") for i in (1, 2, 3, 4)),
    ("mlp.lin1", "mlp.lin1", "mlp/fc1", "linear"),
    ("mlp.lin2", "mlp.lin2", "mlp/fc2", "linear"),
]
_TWO_WAY_END: list[Row] = [
    *_attention("final_attn_token_to_image"),
    ("norm_final_attn", "layer_norm_final_attn", "norm_final_attn", "norm"),
]


def _head(depth: int) -> list[Row]:
    """An `MlpHead`: Hugging Face gives its first and last layers names of their own."""
    theirs = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
    return [(f"layers.{i}", name, f"layers/{i}", "linear") for i, name in enumerate(theirs)]


def _fixed_sections(config: SamConfig) -> Iterable[_Section]:
    yield _Section("image_encoder.", "vision_encoder.", "image_encoder/", _ENCODER)
    yield _Section(
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
        "prompt_encoder/position/matrix",
        [("", "", "", "tensor")],
    )
    prompts, decoder = "prompt_encoder.", "mask_decoder."
    yield _Section(prompts, prompts, "prompt_encoder/", _PROMPTS)
    yield _Section(decoder, decoder, "mask_decoder/", _DECODER)
    for i in range(config.decoder_layers):
        name = f"{decoder}transformer.layers.{i}."
        yield _Section(name, name, f"mask_decoder/transformer/layers/{i}/", _TWO_WAY_BLOCK)
    name = f"{decoder}transformer."
    yield _Section(name, name, "mask_decoder/transformer/", _TWO_WAY_END)
    for i in range(config.num_multimask_outputs + 1):
        name = f"{decoder}output_hypernetworks_mlps.{i}."
        yield _Section(name, name, f"mask_decoder/output_hypernetworks_mlps/{i}/", _head(3))
    name, rows = f"{decoder}iou_prediction_head.", _head(config.iou_head_depth)
    yield _Section(name, name, "mask_decoder/iou_prediction_head/", rows)


def sam_rules(config: SamConfig, names: KeyNames) -> list[Rule]:
    """The table of all keys of one set of names."""
    rules = [rule for section in _fixed_sections(config) for rule in section.rules(names)]
    for i in range(4):
        row = (f"point_embeddings.{i}", f"point_embed.{i}", "point_embeddings", "embedding of one")
        prefix = "prompt_encoder."
        rules += _Section(prefix, prefix, "prompt_encoder/", [row]).rules(names, layer=i)
    per_stage = config.num_layers // config.num_stages
    for i in range(config.num_layers):
        stage, place = divmod(i, per_stage)
        is_global = place == per_stage - 1
        blocks = "global_blocks" if is_global else "windowed_blocks"
        index = stage if is_global else stage * (per_stage - 1) + place
        section = _Section(
            f"image_encoder.blocks.{i}.",
            f"vision_encoder.layers.{i}.",
            f"image_encoder/{blocks}/block/",
            _BLOCK,
        )
        rules += section.rules(names, layer=index)
    return rules
