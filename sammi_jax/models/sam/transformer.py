"""SAM's two-way transformer: prompt tokens and image tokens attend to each other.

Original: facebookresearch/segment-anything, segment_anything/modeling/transformer.py.

Deviations: for one prompt (callers map over prompts; what does not depend on the prompt, such as
the first layer's projections of the image, is then computed once for all prompts). Where the image
depends on the prompt, its projections are moved to the few tokens (`attend_to_image`,
`attend_from_image`): equal up to rounding, at half the products.
The eps of the blocks' norms is a field of the configuration: 1e-5 in the original, 1e-6 in
Hugging Face's port; the final norm's is 1e-5 in both.
"""

from typing import cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.layers import Mlp, MultiHeadAttention, layer_norm
from sammi_jax.layers.attention import merge_heads, split_heads
from sammi_jax.typing import Array, Float


def attend_to_image(
    attention: MultiHeadAttention,
    tokens: Float[Array, "n c"],
    placed: Float[Array, "m c"],
    image: Float[Array, "m c"],
) -> Float[Array, "n c"]:
    """``attention(tokens, placed, image)`` for few tokens and many cells.

    ``(q) . (W_k x)`` is ``(W_k^T q) . x``, and the mean of ``W_v x`` is ``W_v`` of the mean of
    ``x``: both kernels meet the tokens and not the cells. The keys' bias adds the same to all
    scores of a query, and softmax takes it out again.
    """
    heads = attention.num_heads
    query = split_heads(attention.query(tokens), heads)
    key_kernel = rearrange(attention.key.kernel[...], "c (h d) -> h c d", h=heads)
    value_kernel = rearrange(attention.value.kernel[...], "c (h d) -> h c d", h=heads)
    query = jnp.einsum("hnd,hcd->hnc", query * query.shape[-1] ** -0.5, key_kernel)
    scores = jnp.einsum("hnc,mc->hnm", query, placed).astype(jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1).astype(image.dtype)
    mean = jnp.einsum("hnm,mc->hnc", weights, image)
    out = merge_heads(jnp.einsum("hnc,hcd->hnd", mean, value_kernel))
    return attention.out(out + jnp.broadcast_to(_bias(attention.value), out.shape))


def attend_from_image(
    attention: MultiHeadAttention,
    placed: Float[Array, "m c"],
    keys: Float[Array, "n c"],
    values: Float[Array, "n c"],
) -> Float[Array, "m c"]:
    """``attention(placed, keys, values)`` for many cells and few tokens.

    The queries' kernel meets the tokens' keys, the output's kernel their values.
    """
    heads = attention.num_heads
    key = split_heads(attention.key(keys), heads)
    value = split_heads(attention.value(values), heads)
    key = key * key.shape[-1] ** -0.5
    query_kernel = rearrange(attention.query.kernel[...], "c (h d) -> h c d", h=heads)
    query_bias = rearrange(_bias(attention.query), "(h d) -> h d", h=heads)
    out_kernel = rearrange(attention.out.kernel[...], "(h d) c -> h d c", h=heads)
    offset = jnp.einsum("hnd,hd->hn", key, query_bias)
    key = jnp.einsum("hnd,hcd->hnc", key, query_kernel)
    scores = jnp.einsum("mc,hnc->mhn", placed, key) + offset[None]
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype)
    out = jnp.einsum("mhn,hnc->mc", weights, jnp.einsum("hnd,hdc->hnc", value, out_kernel))
    return out + jnp.broadcast_to(_bias(attention.out), out.shape)


def _bias(layer: nnx.Linear) -> Array:
    return cast(nnx.Param, layer.bias)[...]


class TwoWayBlock(nnx.Module):
    """Tokens attend to tokens, tokens to the image, an MLP on tokens, the image to tokens.

    The first block of a transformer replaces the tokens by their self-attention and adds no
    positions there (``is_first``).
    """

    def __init__(self, config: SamConfig, *, is_first: bool, rngs: nnx.Rngs):
        dim, heads, eps = config.out_channels, config.decoder_heads, config.decoder_eps
        self.is_first = is_first
        self.self_attn = MultiHeadAttention(dim, heads, rngs=rngs)
        self.norm1 = layer_norm(dim, eps=eps, rngs=rngs)
        self.cross_attn_token_to_image = _cross_attention(config, rngs)
        self.norm2 = layer_norm(dim, eps=eps, rngs=rngs)
        self.mlp = Mlp(dim, config.decoder_mlp_dim, activation="relu", rngs=rngs)
        self.norm3 = layer_norm(dim, eps=eps, rngs=rngs)
        self.cross_attn_image_to_token = _cross_attention(config, rngs)
        self.norm4 = layer_norm(dim, eps=eps, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "n c"],
        image: Float[Array, "m c"],
        token_pe: Float[Array, "n c"],
        image_pe: Float[Array, "m c"],
    ) -> tuple[Float[Array, "n c"], Float[Array, "m c"]]:
        """Update tokens and image; positions are added to queries and keys, never to values."""
        if self.is_first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            query = tokens + token_pe
            tokens = tokens + self.self_attn(query, query, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        to_image, from_image = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if self.is_first:  # the image is that of all prompts: so are its keys and values
            tokens = tokens + to_image(tokens + token_pe, placed, image)
        else:
            tokens = tokens + attend_to_image(to_image, tokens + token_pe, placed, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + attend_from_image(from_image, placed, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


def _cross_attention(config: SamConfig, rngs: nnx.Rngs) -> MultiHeadAttention:
    dim = config.out_channels
    return MultiHeadAttention(dim, config.decoder_heads, inner_dim=dim // 2, rngs=rngs)


class TwoWayTransformer(nnx.Module):
    """`TwoWayBlock` several times, then a last look of the tokens at the image."""

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [TwoWayBlock(config, is_first=i == 0, rngs=rngs) for i in range(config.decoder_layers)]
        )
        self.final_attn_token_to_image = _cross_attention(config, rngs)
        self.norm_final_attn = layer_norm(config.out_channels, eps=1e-5, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "n c"],
        image: Float[Array, "m c"],
        image_pe: Float[Array, "m c"],
    ) -> tuple[Float[Array, "n c"], Float[Array, "m c"]]:
        """Return the updated tokens and image; the tokens as given are their own positions."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        last = self.final_attn_token_to_image
        look = attend_to_image(last, tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + look), image
