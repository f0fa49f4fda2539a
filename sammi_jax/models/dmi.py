"""Decoupled Mask Injection (DMI): context from masks, softly (docs/method.md section 5).

The paper (https://arxiv.org/abs/2511.20027) says: low and high frequency apart, masks never bound
to labels; low by mask pooling and cross-attention, high by extraction and injection. The formulas
are [ours].

Every injection ends in a layer that starts at zero and has no bias, and is switched off for an
image without a valid mask: an untrained DMI changes nothing, and any DMI changes nothing there.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import DmiConfig
from sammi_jax.layers import ACTIVATIONS, Conv, MultiHeadAttention
from sammi_jax.ops.cosine import cosine_map
from sammi_jax.ops.masks import Masks, average_pool, boundary, box_mean, mask_pool, mask_spread
from sammi_jax.typing import Array, Bool, Float

LOW_PASS_SIZE = 5  # side of the box filter where no mask covers, in pixels


def _zero_linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=False,
        kernel_init=nnx.initializers.zeros_init(),
        rngs=rngs,
    )


def _add_where(
    used: Bool[Array, " b"], base: Float[Array, "b h w *c"], change: Float[Array, "b h w *c"]
) -> Float[Array, "b h w *c"]:
    """Add the change to the images where it is used; the others stay as they are, to the bit."""
    return jnp.where(used.reshape(-1, *(1,) * (base.ndim - 1)), base + change, base)


def _only_valid(masks: Masks, valid: Bool[Array, "b n"]) -> Masks:
    return jnp.where(valid[:, :, None, None], masks, jnp.zeros((), masks.dtype))


class LowInjection(nnx.Module):
    """Region context for F_l and for the cost map.

    Intra-mask context is each cell's mean of the regions that cover it, inter-mask context is
    attention from the cells to all regions.
    """

    def __init__(self, dim: int, num_heads: int, num_templates: int, *, rngs: nnx.Rngs):
        self.attention = MultiHeadAttention(dim, num_heads, rngs=rngs)
        self.out = _zero_linear(2 * dim, dim, rngs)
        self.alpha = nnx.Param(jnp.zeros((num_templates,), jnp.float32))

    def __call__(
        self,
        features: Float[Array, "b h w d"],
        masks: Float[Array, "b n h w"],
        valid: Bool[Array, "b n"],
    ) -> Float[Array, "b h w d"]:
        """F_l' = F_l + zero_linear([intra, inter])."""
        b, n = valid.shape
        masks = _only_valid(masks, valid)
        regions = mask_pool(masks, features).astype(features.dtype)
        intra = mask_spread(masks, regions).astype(features.dtype)
        cells = rearrange(features, "b h w d -> b (h w) d")
        may_attend = jnp.broadcast_to(valid[:, None, None, :], (b, 1, cells.shape[1], n))
        inter = self.attention(cells, regions, regions, may_attend)
        context = jnp.concatenate([intra, inter.reshape(features.shape)], axis=-1)
        return _add_where(valid.any(axis=-1), features, self.out(context))

    def inject_cost(
        self,
        cost: Float[Array, "b h w t p"],
        features: Float[Array, "b h w d"],
        text_features: Float[Array, "t p d"],
        any_valid: Bool[Array, " b"],
    ) -> Float[Array, "b h w t p"]:
        """S + alpha * cos(F_l', F_t), one alpha a template."""
        cosine = cosine_map(features, text_features)
        return _add_where(any_valid, cost, self.alpha[None, None, None, None] * cosine)


class HighInjection(nnx.Module):
    """High frequencies of one guidance map, stressed at mask boundaries."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(2 * dim, dim, 3, rngs=rngs)
        self.out = _zero_linear(dim, dim, rngs)

    def __call__(
        self, features: Float[Array, "b h w c"], masks: Masks, valid: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """F' = F + zero_conv(gelu(conv3x3([HP(F), HP(F) * E]))), the zero convolution 1 x 1."""
        masks = _only_valid(masks, valid)
        high = features - low_pass(features, masks).astype(features.dtype)
        edges = boundary(masks).astype(features.dtype)[..., None]
        hidden = self.conv(jnp.concatenate([high, high * edges], axis=-1))
        change = self.out(ACTIVATIONS["gelu"](hidden))
        return _add_where(valid.any(axis=-1), features, change)


def low_pass(features: Float[Array, "b h w c"], masks: Masks) -> Float[Array, "b h w c"]:
    """Mask-aware low pass: the mean of the means of the masks that cover a pixel.

    Where no mask covers, a 5 x 5 box filter over the pixels that exist.
    """
    covered = masks.any(axis=1)[..., None]
    regions = mask_spread(masks, mask_pool(masks, features))
    return jnp.where(covered, regions, box_mean(features, LOW_PASS_SIZE))


class Dmi(nnx.Module):
    """All injections; one that the configuration switches off has no parameters and does nothing.

    Args:
        config: switches and the number of attention heads.
        embed_dim: channels of F_l.
        guidance_dims: channels of F_h1 and F_h2.
        num_templates: prompt templates of the cost map.
        rngs: the stream ``params``.
    """

    def __init__(
        self,
        config: DmiConfig,
        embed_dim: int,
        guidance_dims: tuple[int, int],
        num_templates: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        if config.low:
            self.low_injection = LowInjection(embed_dim, config.num_heads, num_templates, rngs=rngs)
        if config.high:
            self.high_injections = nnx.List(HighInjection(dim, rngs=rngs) for dim in guidance_dims)

    @jax.named_scope("dmi")
    def __call__(
        self,
        cost: Float[Array, "b h w t p"],
        low: Float[Array, "b h w d"],
        high: tuple[Float[Array, "b h2 w2 c1"], Float[Array, "b h4 w4 c2"]],
        text_features: Float[Array, "t p d"],
        masks: Bool[Array, "b n h4 w4"],
        valid: Bool[Array, "b n"],
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """S', F_l' and (F_h1', F_h2'), of the shapes of S, F_l and (F_h1, F_h2).

        Args:
            cost: S.
            low: F_l.
            high: F_h1 and F_h2.
            text_features: F_t.
            masks: at the resolution of F_h2.
            valid: which slots hold a mask.
        """
        if self.config.low:
            cells = average_pool(masks, masks.shape[-1] // low.shape[-2])
            low = self.low_injection(low, cells, valid)
            cost = self.low_injection.inject_cost(cost, low, text_features, valid.any(axis=-1))
        if self.config.high:
            half = average_pool(masks, masks.shape[-1] // high[0].shape[-2]) >= 0.5
            first, second = self.high_injections
            high = (first(high[0], half, valid), second(high[1], masks, valid))
        return cost, low, high
