"""Decoupled Mask Injection (DMI): context from masks, softly (docs/method.md section 5).

The paper (https://arxiv.org/abs/2511.20027) says: low and high frequency apart, masks never bound
to labels; low by mask pooling and cross-attention, high by extraction and injection. The formulas
are [ours].

Each mask is a region with a pooled feature (intra-mask context) that attends to the other regions
(inter-mask context) and is compared with the texts. What the regions say of the classes is spread
over their pixels and enters CAT-Seg's head at every resolution: beside the cost map's embedding,
behind both blocks of the decoder, and, at the masks' own resolution, as a pull of each class's
logits toward their mean in every mask (`models.smoothing`). No class is chosen anywhere.

Every injection ends in one layer or scalar that starts at zero, has no bias and stands beside
evidence that does not: an untrained DMI changes nothing and learns from its first step. It is also
switched off where no valid mask covers, so any DMI changes nothing for an image without masks.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import AggregatorConfig, DmiConfig
from sammi_jax.layers import ACTIVATIONS, Conv, MultiHeadAttention
from sammi_jax.models.smoothing import Smoothing
from sammi_jax.ops.cosine import cosine_map
from sammi_jax.ops.masks import Masks, average_pool, boundary, box_mean, mask_pool, mask_spread
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Int

LOW_PASS_SIZE = 5  # side of the box filter where no mask covers, in pixels
SCALES = (1, 2, 4)  # pixels a cell along a side where evidence enters: embedding, decoder blocks
KERNEL_SIZES = (7, 3, 3)  # of the convolutions there, as those that they stand beside


def _zero_linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=False,
        kernel_init=nnx.initializers.zeros_init(),
        rngs=rngs,
    )


def _zero_conv(in_features: int, out_features: int, size: int, rngs: nnx.Rngs) -> Conv:
    conv = Conv(in_features, out_features, size, use_bias=False, rngs=rngs)
    conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    return conv


def _add_where(
    used: Bool[Array, " b"], base: Float[Array, "b h w *c"], change: Float[Array, "b h w *c"]
) -> Float[Array, "b h w *c"]:
    """Add the change to the images where it is used; the others stay as they are, to the bit."""
    return jnp.where(used.reshape(-1, *(1,) * (base.ndim - 1)), base + change, base)


class RegionContext(nnx.Module):
    """R' = R + Z_r MHA(R, R, R): each region in the light of the other ones."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.attention = MultiHeadAttention(dim, num_heads, rngs=rngs)
        self.out = _zero_linear(dim, dim, rngs)

    def __call__(
        self, regions: Float[Array, "b n d"], valid: Bool[Array, "b n"]
    ) -> Float[Array, "b n d"]:
        """Attend among the valid regions; the others' values mean nothing."""
        context = self.attention(regions, regions, regions, valid[:, None, None, :])
        return regions + self.out(context)


class LowInjection(nnx.Module):
    """F_l' = F_l + zero_linear([intra, inter]), the aggregator's appearance guidance.

    Intra-mask context is each cell's mean of the regions that cover it, inter-mask context is
    attention from the cells to all regions.
    """

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.attention = MultiHeadAttention(dim, num_heads, rngs=rngs)
        self.out = _zero_linear(2 * dim, dim, rngs)

    def __call__(
        self,
        features: Float[Array, "b h w d"],
        regions: Float[Array, "b n d"],
        masks: Float[Array, "b n h w"],
        valid: Bool[Array, "b n"],
    ) -> Float[Array, "b h w d"]:
        """F_l' from F_l, the regions R and their masks W^1 (zero where they are not valid)."""
        intra = mask_spread(masks, regions).astype(features.dtype)
        cells = rearrange(features, "b h w d -> b (h w) d")
        inter = self.attention(cells, regions, regions, valid[:, None, None, :])
        context = jnp.concatenate([intra, inter.reshape(features.shape)], axis=-1)
        return _add_where(valid.any(axis=-1), features, self.out(context))


class HighInjection(nnx.Module):
    """High frequencies of one guidance map, stressed at mask boundaries."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(2 * dim, dim, 3, rngs=rngs)
        self.out = _zero_linear(dim, dim, rngs)

    def __call__(
        self, features: Float[Array, "b h w c"], masks: Masks, valid: Bool[Array, "b n"]
    ) -> Float[Array, "b h w c"]:
        """F' = F + zero_conv(gelu(conv3x3([HP(F), HP(F) * E]))), the zero convolution 1 x 1.

        Args:
            features: F.
            masks: of the same size; False where they are not valid.
            valid: which slots hold a mask.
        """
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
        aggregator: the head's sizes.
        embed_dim: channels of F_l.
        rngs: the stream ``params``.
    """

    def __init__(
        self, config: DmiConfig, aggregator: AggregatorConfig, embed_dim: int, *, rngs: nnx.Rngs
    ):
        self.config = config
        heads, templates = config.num_heads, aggregator.num_templates
        if config.low or config.decoder:
            self.region_context = RegionContext(embed_dim, heads, rngs=rngs)
        if config.low:
            self.low_injection = LowInjection(embed_dim, heads, rngs=rngs)
        if config.high:
            self.high_injections = nnx.List(
                HighInjection(dim, rngs=rngs) for dim in aggregator.decoder_guidance_dims
            )
        widths = (aggregator.hidden_dim, *aggregator.decoder_dims)
        used = (config.low, config.decoder, config.decoder)
        self.evidence_convs = nnx.List(
            _zero_conv(templates, width, size, rngs) if on else None
            for width, size, on in zip(widths, KERNEL_SIZES, used, strict=True)
        )
        if config.smoothing:
            self.smoothing = Smoothing()

    @jax.named_scope("dmi")
    def __call__(
        self,
        low: Float[Array, "b h w d"],
        high: tuple[Float[Array, "b h2 w2 c1"], Float[Array, "b h4 w4 c2"]],
        text_features: Float[Array, "t p d"],
        masks: Bool[Array, "b n h8 w8"],
        valid: Bool[Array, "b n"],
    ) -> tuple["Injection", Array, tuple[Array, Array]]:
        """What enters the aggregator, F_l' and (F_h1', F_h2').

        Args:
            low: F_l.
            high: F_h1 and F_h2.
            text_features: F_t.
            masks: at a multiple of the resolution of F_h2.
            valid: which slots hold a mask.
        """
        masks = masks & valid[:, :, None, None]
        sides = (low.shape[1], high[0].shape[1], high[1].shape[1])
        coarse, half, fine = (average_pool(masks, masks.shape[2] // side) for side in sides)
        scores = None
        if self.config.low or self.config.decoder:
            regions = mask_pool(coarse, low).astype(low.dtype)
            related = self.region_context(regions, valid)
            scores = cosine_map(related[:, :, None], text_features)[:, :, 0]
            if self.config.low:
                low = self.low_injection(low, regions, coarse, valid)
        if self.config.high:
            first, second = self.high_injections
            high = (first(high[0], half >= 0.5, valid), second(high[1], fine >= 0.5, valid))
        return Injection(self, scores, (coarse, half, fine)), low, high


@dataclass(frozen=True)
class Injection:
    """The masks of one view and what they say of the classes, as the aggregator takes it in.

    Attributes:
        dmi: whose layers inject.
        scores: Q ``[b, n, t, p]``, cosines of the regions R' with the texts, in float32; None where
            no part needs them.
        weights: W^1, W^2, W^4 ``[b, n, kh, kw]``: each mask's share of the pixels of the embedding
            and behind the decoder's blocks; zero where a mask is not valid.
    """

    dmi: Dmi
    scores: Array | None
    weights: tuple[Array, Array, Array]

    def choose(self, classes: Int[Array, "b k"]) -> "Injection":
        """The same for some classes of each image."""
        if self.scores is None:
            return self
        return replace(
            self, scores=jnp.take_along_axis(self.scores, classes[:, None, :, None], axis=2)
        )

    @jax.named_scope("dmi")
    def evidence(self, stage: int, cost: Float[Array, "b h1 w1 t p"]) -> "Evidence | None":
        """``g_k (spread_k(Q) - up_k(S))`` and ``Z_k``; None if nothing enters at this stage.

        Args:
            stage: k: the embedding (0) or a decoder block (1, 2).
            cost: S.
        """
        conv, weights = self.dmi.evidence_convs[stage], self.weights[stage]
        if conv is None or self.scores is None:
            return None
        templates = cost.shape[-1]
        spread = mask_spread(weights, rearrange(self.scores, "b n t p -> b n (t p)"))
        spread = rearrange(spread, "b h w (t p) -> b t h w p", p=templates)
        cost = resize(
            rearrange(cost, "b h w t p -> b t h w p"), (weights.shape[2], weights.shape[3])
        )
        return Evidence(_coverage(weights)[:, None, :, :, None] * (spread - cost), conv)


@dataclass(frozen=True)
class Evidence:
    """What masks say of the classes at one resolution.

    Attributes:
        maps: ``[b, t, h, w, p]``, in float32.
        conv: takes them to the channels of the maps that they are added to.
    """

    maps: Array
    conv: Conv

    def add(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        """Add the evidence to the aggregator's maps."""
        return x + self.conv(self.maps.astype(x.dtype))


def _coverage(weights: Float[Array, "b n h w"]) -> Float[Array, "b h w"]:
    """g_k: how far masks cover a pixel, at most 1."""
    return jnp.minimum(weights.sum(axis=1), 1.0)
