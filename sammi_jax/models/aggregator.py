"""Cost aggregation and up-sampling decoder: cost map and guidance in, logits of each class out.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py (``Aggregator``);
docs/catseg.md part c. Every step but the class attention treats each class's map on its own.
Deviations: guidance that the reference repeats for every class is multiplied once an image (equal
up to rounding); classes may be absent (``class_mask``), which gives the present ones exactly what
the reference gives for them alone; ``cost_skip`` [ours] adds the scaled raw cost to the logits.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import AggregatorConfig, Remat
from sammi_jax.layers import Conv, linear
from sammi_jax.layers.class_attention import ClassAggregation
from sammi_jax.layers.pieces import in_pieces
from sammi_jax.layers.remat import rematerialized
from sammi_jax.layers.swin import SpatialAggregation
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.decoder import DecoderBlock, SharedByClasses, decode
from sammi_jax.models.dmi import Evidence, Injection
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Int

ABSENT_LOGIT = -100.0
CLASSES = 4  # whose maps a CPU treats at once, where classes do not meet
# Cosines of a few tenths then start as logits around -3: about the prior of one class in many.
SKIP_SCALE, SKIP_BIAS = 10.0, -5.0


class AggregatorLayer(nnx.Module):
    """One layer: aggregation over space (``spatial``), then over classes (``classes``)."""

    def __init__(self, config: AggregatorConfig, *, rngs: nnx.Rngs):
        dim, heads = config.hidden_dim, config.num_heads
        self.spatial = SpatialAggregation(
            dim, config.appearance_dim, heads, config.window_size, rngs=rngs
        )
        self.classes = ClassAggregation(dim, config.text_dim, heads, config.attention, rngs=rngs)


class Aggregator(nnx.Module):
    """CAT-Seg's head; the stages of `__call__` are methods, in the order in which they run.

    Args:
        config: sizes and switches.
        embed_dim: width of the appearance guidance (CLIP's joint space).
        text_dim_in: width of the text features; default ``embed_dim``.
    """

    def __init__(
        self,
        config: AggregatorConfig,
        embed_dim: int,
        text_dim_in: int | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dim, projected = config.hidden_dim, config.decoder_guidance_proj_dims
        self.embedding = Conv(config.num_templates, dim, 7, rngs=rngs)
        self.appearance_projection = Conv(embed_dim, config.appearance_dim, 3, rngs=rngs)
        self.text_projection = linear(text_dim_in or embed_dim, config.text_dim, rngs=rngs)
        self.decoder_projections = nnx.List(
            [
                Conv(width, out, 3, rngs=rngs)
                for width, out in zip(config.decoder_guidance_dims, projected, strict=True)
            ]
        )
        self.layers = nnx.List(
            [AggregatorLayer(config, rngs=rngs) for _ in range(config.num_layers)]
        )
        first, second = config.decoder_dims
        self.decoder = nnx.List(
            [
                DecoderBlock(dim, projected[0], first, rngs=rngs),
                DecoderBlock(first, projected[1], second, rngs=rngs),
            ]
        )
        self.head = Conv(second, 1, 3, rngs=rngs)
        if config.cost_skip:
            self.skip_scale = nnx.Param(jnp.asarray(SKIP_SCALE))
            self.skip_bias = nnx.Param(jnp.asarray(SKIP_BIAS))

    def embed(self, cost: Float[Array, "b h w t p"]) -> Float[Array, "b t h w c"]:
        """Embed each class's cost map with a 7 x 7 convolution over its templates."""
        cost = cost.astype(self.embedding.kernel[...].dtype)  # cosines come in float32
        return self.embedding(rearrange(cost, "b h w t p -> b t h w p"))

    def project_text(self, text_features: Float[Array, "*b p d"]) -> Float[Array, "*b e"]:
        """Text guidance: the mean over templates, scaled to unit length, projected, ReLU.

        A mean of zero (an absent class) gives the projection of zero.
        """
        mean = jnp.mean(text_features, axis=-2)
        squares = jnp.sum(jnp.square(mean), axis=-1, keepdims=True)
        return jax.nn.relu(self.text_projection(mean * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))))

    def project_appearance(self, appearance: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        """Appearance guidance of the spatial aggregation, before each layer's norm."""
        return jax.nn.relu(self.appearance_projection(appearance))

    def project_guidance(
        self, guidance: tuple[Float[Array, "b h2 w2 d1"], Float[Array, "b h4 w4 d2"]]
    ) -> list[Array]:
        """Guidance of the two decoder blocks."""
        pairs = zip(self.decoder_projections, guidance, strict=True)
        return [jax.nn.relu(projection(level)) for projection, level in pairs]

    def share(self, guidance: list[Array]) -> list[SharedByClasses]:
        """What the classes share in the two decoder blocks, from their projected guidance."""
        pairs = zip(self.decoder, guidance, strict=True)
        return [block.share(level) for block, level in pairs]

    def decode(
        self,
        x: Float[Array, "b t h w c"],
        shared: list[SharedByClasses],
        cost: Float[Array, "b h w t p"] | None = None,
        injection: Injection | None = None,
    ) -> Float[Array, "b t h4 w4"]:
        """Up-sample four times with what the classes share; one logit a class and cell.

        The masks' evidence, where there is an ``injection``, is measured against ``cost``.
        """
        evidence: list[Evidence | None] = [None, None]
        if injection is not None and cost is not None:
            evidence = [injection.evidence(stage, cost) for stage in (1, 2)]
        return decode(list(self.decoder), self.head, x, shared, evidence)

    @jax.named_scope("aggregator")
    def __call__(
        self,
        cost: Float[Array, "b h w t p"],
        text: ClassTexts,
        appearance: Float[Array, "b h w d"],
        decoder_guidance: tuple[Float[Array, "b h2 w2 d1"], Float[Array, "b h4 w4 d2"]],
        pooling_size: int,
        remat: Remat = "none",
        injection: Injection | None = None,
        chosen: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b t h4 w4"]:
        """Aggregate the cost map to logits at four times its side.

        With more classes than ``config.pad_length``, each image keeps the ``pad_length`` classes of
        largest cosine anywhere in its cost map; the others' logits are -100 (docs/catseg.md c).

        Args:
            cost: cosines of each patch with each class and template.
            text: unit vectors (the mean over templates takes them as they are), and which slots
                hold a class; the logits of the others are -100.
            appearance: CLIP's dense features, not normalized.
            decoder_guidance: feature maps of two and four times the cost map's side.
            pooling_size: pooling of the class attention, `AggregatorConfig.pooling_size` in
                training and 1 in evaluation.
            remat: of each stage in the backward pass.
            injection: what the masks say (docs/method.md section 5); None: CAT-Seg.
            chosen: indices of the classes that each image keeps, in the place of those of largest
                cosine; the images are decoded as if the others had not been asked for.
        """
        batch, num_classes = cost.shape[0], cost.shape[3]
        mask = jnp.broadcast_to(text.mask, (batch, num_classes))
        guidance = self.project_text(text.features)[None]
        if chosen is None and 0 < self.config.pad_length < num_classes:
            chosen = choose_classes(cost, mask, self.config.pad_length)
        if chosen is not None:
            cost = jnp.take_along_axis(cost, chosen[:, None, None, :, None], axis=3)
            mask = jnp.take_along_axis(mask, chosen, axis=1)
            guidance = guidance[0][chosen]
            injection = None if injection is None else injection.choose(chosen)
        logits = self._aggregate(
            cost, guidance, mask, appearance, decoder_guidance, pooling_size, remat, injection
        )
        if chosen is not None:
            shape = (batch, num_classes, *logits.shape[2:])
            absent = jnp.full(shape, ABSENT_LOGIT, logits.dtype)
            logits = absent.at[jnp.arange(batch)[:, None], chosen].set(logits)
        return logits

    def _aggregate(
        self, cost, text, mask, appearance, decoder_guidance, pooling_size, remat, injection
    ) -> Array:
        stage, recompute = partial(rematerialized, remat=remat), remat == "full"
        num_padding = jnp.maximum(self.config.pad_length - jnp.sum(mask, axis=1), 0)
        appearance = self.project_appearance(appearance)
        x = self.embed(cost)
        evidence = None if injection is None else injection.evidence(0, cost)
        if evidence is not None:
            x = evidence.add(x)
        for layer in self.layers:
            spatial = stage(partial(layer.spatial, appearance=appearance))
            x = in_pieces(spatial, [x], axes=[1], most=CLASSES, recompute=recompute)
            classes = partial(layer.classes, pooling_size=pooling_size)
            x = stage(classes)(x, text, mask, num_padding)
        shared = self.share(self.project_guidance(decoder_guidance))
        if injection is None or injection.scores is None:  # no evidence
            decode = stage(partial(self.decode, shared=shared))
            logits = in_pieces(decode, [x], axes=[1], most=CLASSES, recompute=recompute)
        else:

            def decode_with(x: Array, cost: Array, scores: Array) -> Array:
                return self.decode(x, shared, cost, replace(injection, scores=scores))

            parts = [x, cost, injection.scores]  # the evidence is recomputed as well
            decode = stage(decode_with)
            axes = [1, 3, 2]
            logits = in_pieces(decode, parts, axes, most=CLASSES, recompute=recompute)
        if self.config.cost_skip:
            raw = rearrange(jnp.mean(cost, axis=-1), "b h w t -> b t h w 1")
            size = (logits.shape[2], logits.shape[3])
            raw = resize(raw, size, "bilinear", align_corners=False)[..., 0]
            logits = logits + self.skip_scale[...] * raw + self.skip_bias[...]
        return jnp.where(mask[:, :, None, None], logits, ABSENT_LOGIT)


def choose_classes(
    cost: Float[Array, "b h w t p"], class_mask: Bool[Array, "b t"], num_classes: int
) -> Int[Array, "b k"]:
    """Indices of each image's ``num_classes`` classes of largest cosine; absent classes come last.

    Example:
        A class that is certain in a single cell is kept, one that is lukewarm everywhere is not.
    """
    score = jnp.where(class_mask, jnp.max(cost, axis=(1, 2, 4)), -jnp.inf)
    return jax.lax.top_k(score, num_classes)[1]
