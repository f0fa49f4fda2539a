"""CLIP's image and text towers, with CAT-Seg's dense image features.

Original: openai/CLIP clip/model.py (VisionTransformer, CLIP.encode_text); the dense mode is that
of cvlab-kaist/CAT-Seg@6d3a188 cat_seg/third_party/model_vpt.py.

Deviations: the position table is resized to whatever grid the image has, in `Clip.encode_image`
too (the originals refuse); in dense mode the query and key of the last block, which the original
computes and drops, are not computed.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import ClipConfig, Remat
from sammi_jax.errors import SammiError
from sammi_jax.layers import Mlp, MultiHeadAttention, PatchEmbed, Stack, layer_norm, linear
from sammi_jax.layers.init import normal
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Int

_MLP_RATIO = 4


def _normal(shape: tuple[int, ...], std: float, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(normal(rngs.params(), shape, std))


class ClipBlock(nnx.Module):
    """Pre-norm transformer block: ``x += attention(norm1(x)); x += mlp(norm2(x))``."""

    def __init__(self, width: int, num_heads: int, *, activation: str, eps: float, rngs: nnx.Rngs):
        self.norm1 = layer_norm(width, eps=eps, rngs=rngs)
        self.attention = MultiHeadAttention(width, num_heads, rngs=rngs)
        self.norm2 = layer_norm(width, eps=eps, rngs=rngs)
        self.mlp = Mlp(width, _MLP_RATIO * width, activation=activation, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b n c"], mask: Bool[Array, "n n"] | None = None
    ) -> Float[Array, "*b n c"]:
        """Run the block; ``mask`` is True where attending is allowed."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, mask)
        return x + self.mlp(self.norm2(x))

    def value_only(self, x: Float[Array, "*b n c"]) -> Float[Array, "*b n c"]:
        """CAT-Seg's last block: every token keeps its own value instead of attending.

        The residual is the class token's (token 0), for every token (docs/catseg.md part a).
        """
        y = self.attention.out(self.attention.value(self.norm1(x)))
        y = y + x[..., :1, :]
        return y + self.mlp(self.norm2(y))


def _blocks(sizes, config: ClipConfig, rngs: nnx.Rngs) -> Stack:
    """The transformer of one tower; ``sizes`` is its part of the configuration."""

    def make_block(block_rngs: nnx.Rngs) -> ClipBlock:
        return ClipBlock(
            sizes.width,
            sizes.num_heads,
            activation=config.activation,
            eps=config.eps,
            rngs=block_rngs,
        )

    return Stack(make_block, sizes.num_layers, rngs=rngs)


class ImageTower(nnx.Module):
    """Vision transformer with a class token in front of the patches, row by row."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        sizes = config.vision
        width, std = sizes.width, sizes.width**-0.5
        self.config = sizes
        self.patch_embed = PatchEmbed(sizes.patch_size, width, use_bias=False, rngs=rngs)
        self.class_embedding = _normal((width,), std, rngs)
        self.position_embedding = _normal((1 + sizes.grid_size**2, width), std, rngs)
        self.norm_pre = layer_norm(width, eps=config.eps, rngs=rngs)
        self.transformer = _blocks(sizes, config, rngs)
        self.norm_post = layer_norm(width, eps=config.eps, rngs=rngs)
        self.projection = linear(width, config.embed_dim, use_bias=False, rngs=rngs)

    def position_table(self, grid: tuple[int, int]) -> Float[Array, "n c"]:
        """The position table for a ``(rows, columns)`` grid: class token first, then row by row.

        Bicubic with PyTorch's coefficient -0.75; the native grid gets the table unchanged.
        """
        table = self.position_embedding[...]
        patches = rearrange(table[1:], "(h w) c -> h w c", h=self.config.grid_size)
        patches = resize(patches, grid, "bicubic", align_corners=False)
        return jnp.concatenate([table[:1], rearrange(patches, "h w c -> (h w) c")])

    def embed(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b n c"], int]:
        """The first block's input, and the number of patch rows.

        Raises:
            SammiError: a side of the image is not a multiple of the patch size.
        """
        height, width = image.shape[1:3]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise SammiError(
                f"CLIP input of {height} x {width} pixels: give multiples of the patch size {patch}"
            )
        patches = self.patch_embed(image)
        b, rows, columns, c = patches.shape
        cls = jnp.broadcast_to(self.class_embedding[...].astype(patches.dtype), (b, 1, c))
        tokens = jnp.concatenate([cls, rearrange(patches, "b h w c -> b (h w) c")], axis=1)
        tokens = tokens + self.position_table((rows, columns)).astype(tokens.dtype)[None]
        return self.norm_pre(tokens), rows

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The class token's embedding in the joint space, not normalized."""
        tokens, _ = self.transformer(self.embed(image)[0])
        return self.projection(self.norm_post(tokens[:, 0]))

    def dense(
        self, image: Float[Array, "b h w 3"], taps: tuple[int, int], remat: Remat = "none"
    ) -> tuple[Float[Array, "b h2 w2 d"], tuple[Float[Array, "b h2 w2 c"], ...]]:
        """Features of every patch, and the outputs of the blocks in ``taps``."""
        last = self.config.num_layers - 1
        if list(taps) != sorted(taps) or not 0 <= taps[0] <= taps[-1] < last:
            raise SammiError(
                f"taps {taps}: the dense mode reads two of blocks 0 to {last - 1}, in order"
            )
        tokens, rows = self.embed(image)
        tokens, tapped = self.transformer(tokens, num_layers=last, taps=taps, remat=remat)
        tokens = self.transformer.layer(-1).value_only(tokens)
        features = self.projection(self.norm_post(tokens))
        to_map = lambda x: rearrange(x[:, 1:], "b (h w) c -> b h w c", h=rows)  # noqa: E731
        return to_map(features), tuple(to_map(x) for x in tapped)


class TextTower(nnx.Module):
    """Causal transformer whose feature is read at the end-of-text token."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        sizes = config.text
        width = sizes.width
        self.config = sizes
        self.token_embedding = _normal((sizes.vocab_size, width), 0.02, rngs)
        self.position_embedding = _normal((sizes.context_length, width), 0.01, rngs)
        self.transformer = _blocks(sizes, config, rngs)
        self.norm_final = layer_norm(width, eps=config.eps, rngs=rngs)
        self.projection = linear(width, config.embed_dim, use_bias=False, rngs=rngs)

    def __call__(self, token_ids: Int[Array, "b n"], remat: Remat = "none") -> Float[Array, "b d"]:
        """The text embedding, not normalized; the end-of-text token is the largest id of a row."""
        length = token_ids.shape[1]
        if length > self.config.context_length:
            raise SammiError(
                f"{length} tokens a text: this model reads {self.config.context_length} at most"
            )
        tokens = self.token_embedding[...][token_ids] + self.position_embedding[:length][None]
        causal = jnp.tril(jnp.ones((length, length), bool))
        tokens, _ = self.transformer(tokens, causal, remat=remat)
        end = jnp.argmax(token_ids, axis=1)
        feature = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm_final(feature))


class Clip(nnx.Module):
    """Both towers. ``logit_scale`` is the logarithm of the contrastive loss's inverse temperature.

    Tables start as in openai/CLIP (``initialize_parameters``), blocks as PyTorch's layers do.
    """

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = ImageTower(config, rngs=rngs)
        self.text = TextTower(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(math.log(1 / 0.07), jnp.float32))

    def encode_image(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Embedding of whole images, not normalized.

        Args:
            image: CLIP-normalized RGB; any height and width that are multiples of the patch size.
        """
        return self.vision(image)

    @jax.named_scope("clip_image")
    def encode_dense(
        self,
        image: Float[Array, "b h w 3"],
        taps: tuple[int, int] | None = None,
        remat: Remat = "none",
    ) -> tuple[Float[Array, "b h2 w2 d"], tuple[Float[Array, "b h2 w2 c"], ...]]:
        """Embedding of every patch (CAT-Seg's dense mode), not normalized, and middle layers.

        Args:
            image: as for `encode_image`.
            taps: 0-based blocks whose output is returned too; default CAT-Seg's, at one and two
                thirds of the depth (3 and 7 of 12, 7 and 15 of 24).
            remat: of each block's inner values in the backward pass.

        Raises:
            SammiError: the image's sides are no multiples of the patch size, or the tower has no
                such blocks before its last.
        """
        layers = self.config.vision.num_layers
        return self.vision.dense(image, taps or (layers // 3 - 1, 2 * layers // 3 - 1), remat)

    @jax.named_scope("clip_text")
    def encode_text(
        self, token_ids: Int[Array, "b n"], remat: Remat = "none"
    ) -> Float[Array, "b d"]:
        """Embedding of zero-padded token rows (`text.tokenizer.Tokenizer`), not normalized."""
        return self.text(token_ids, remat)
