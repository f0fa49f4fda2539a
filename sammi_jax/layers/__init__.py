"""Building blocks that the models share."""

from sammi_jax.layers.attention import MultiHeadAttention, dot_product_attention
from sammi_jax.layers.basic import (
    ACTIVATIONS,
    Buffer,
    Conv,
    Mlp,
    PatchEmbed,
    TransposedConv,
    group_norm,
    layer_norm,
    linear,
)
from sammi_jax.layers.stack import Stack, Unrolled

__all__ = [
    "ACTIVATIONS",
    "Buffer",
    "Conv",
    "Mlp",
    "MultiHeadAttention",
    "PatchEmbed",
    "Stack",
    "TransposedConv",
    "Unrolled",
    "dot_product_attention",
    "group_norm",
    "layer_norm",
    "linear",
]
