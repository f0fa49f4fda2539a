"""SAM's two-way transformer: prompt tokens and image tokens attend to each other.

Original: facebookresearch/segment-anything, segment_anything/modeling/transformer.py.

Deviations: for one prompt (callers map over prompts; what does not depend on the prompt, such as
the first layer's projections of the image, is then computed once for a whole chunk of prompts).
The eps of the blocks' norms is a field of the configuration: 1e-5 in the original, 1e-6 in
Hugging Face's port; the final norm's is 1e-5 in both.
"""

from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.layers import Mlp, MultiHeadAttention, layer_norm
from sammi_jax.typing import Array, Float


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
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, placed, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(placed, tokens + token_pe, tokens)
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
        look = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + look), image
