"""CAT-Seg's released checkpoints: the tables of which source tensor fills which of our parameters.

The file (docs/catseg.md part g) holds a CLIP with separate query, key and value under
``CLIP_PREFIX``, the aggregator under ``AGGREGATOR_PREFIX``, and two up-sampling layers.
"""

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.convert import clip
from sammi_jax.convert.rules import CONV, CONV_TRANSPOSE, IDENTITY, LINEAR, Rule, Transform

Row = tuple[str, str, Transform]

CLIP_PREFIX = "sem_seg_head.predictor.clip_model."
AGGREGATOR_PREFIX = "sem_seg_head.predictor.transformer."

_FLATTEN = Transform("[1, 1, c] -> [c]", lambda a: a.reshape(-1), lambda a: a[None, None])


def _rows(source: str, target: str, kernel: Transform, *, bias: bool = True) -> list[Row]:
    rows = [(f"{source}.weight", f"{target}/kernel", kernel)]
    return [*rows, (f"{source}.bias", f"{target}/bias", IDENTITY)] if bias else rows


def _norm(source: str, target: str) -> list[Row]:
    return [
        (f"{source}.weight", f"{target}/scale", IDENTITY),
        (f"{source}.bias", f"{target}/bias", IDENTITY),
    ]


_BLOCK: list[Row] = [
    *_norm("norm1", "norm1"),
    *_rows("attn.q", "attention/query", LINEAR),
    *_rows("attn.k", "attention/key", LINEAR),
    *_rows("attn.v", "attention/value", LINEAR),
    *_rows("attn.proj", "attention/out", LINEAR),
    *_norm("norm2", "norm2"),
    *_rows("mlp.fc1", "mlp/fc1", LINEAR),
    *_rows("mlp.fc2", "mlp/fc2", LINEAR),
]
_LAYER: list[Row] = [
    *_norm("swin_block.guidance_norm", "spatial/guidance_norm"),
    *((f"swin_block.block_1.{s}", f"spatial/blocks/0/{t}", f) for s, t, f in _BLOCK),
    *((f"swin_block.block_2.{s}", f"spatial/blocks/1/{t}", f) for s, t, f in _BLOCK),
    ("attention.padding_tokens", "classes/padding_token", _FLATTEN),
    ("attention.padding_guidance", "classes/padding_guidance", _FLATTEN),
    *_norm("attention.norm1", "classes/norm1"),
    *_rows("attention.attention.q", "classes/attention/query", LINEAR),
    *_rows("attention.attention.k", "classes/attention/key", LINEAR),
    *_rows("attention.attention.v", "classes/attention/value", LINEAR),
    *_norm("attention.norm2", "classes/norm2"),
    *_rows("attention.MLP.0", "classes/mlp/fc1", LINEAR),
    *_rows("attention.MLP.2", "classes/mlp/fc2", LINEAR),
]
_DECODER_BLOCK: list[Row] = [
    *_rows("up", "up", CONV_TRANSPOSE),
    *_rows("conv.double_conv.0", "conv1", CONV, bias=False),
    *_norm("conv.double_conv.1", "norm1"),
    *_rows("conv.double_conv.3", "conv2", CONV, bias=False),
    *_norm("conv.double_conv.4", "norm2"),
]
_SINGLES: list[Row] = [
    *_rows("conv1", "embedding", CONV),
    *_rows("guidance_projection.0", "appearance_projection", CONV),
    *_rows("text_guidance_projection.0", "text_projection", LINEAR),
    *_rows("decoder_guidance_projection.0.0", "decoder_projections/0", CONV),
    *_rows("decoder_guidance_projection.1.0", "decoder_projections/1", CONV),
    *((f"decoder1.{s}", f"decoder/0/{t}", f) for s, t, f in _DECODER_BLOCK),
    *((f"decoder2.{s}", f"decoder/1/{t}", f) for s, t, f in _DECODER_BLOCK),
    *_rows("head", "head", CONV),
]
_UPSAMPLING: list[Row] = [
    *_rows("upsample1", "upsample1", CONV_TRANSPOSE),
    *_rows("upsample2", "upsample2", CONV_TRANSPOSE),
]


def model_rules(config: SegmenterConfig, names: clip.KeyNames, start: str = "") -> list[Rule]:
    """The table of all keys; each begins with ``start``, which the prefix of ``names`` includes."""
    return [
        *clip.clip_rules(config.clip, names, "clip/"),
        *(Rule(start + s, t, f) for s, t, f in _UPSAMPLING),
        *aggregator_rules(config.aggregator.num_layers, start + AGGREGATOR_PREFIX),
    ]


def aggregator_rules(
    num_layers: int, source: str = AGGREGATOR_PREFIX, target: str = "aggregator/"
) -> list[Rule]:
    """The table of the aggregator, from keys under one prefix to paths under another."""
    rows = [
        *_SINGLES,
        *(
            (f"layers.{i}.{s}", f"layers/{i}/{t}", f)
            for i in range(num_layers)
            for s, t, f in _LAYER
        ),
    ]
    return [Rule(source + s, target + t, f) for s, t, f in rows]
