"""SAM-MI (https://arxiv.org/abs/2511.20027), put together; without masks it is CAT-Seg.

The paper's figure from left to right: CLIP's dense features and text embeddings give a cost map;
TSPP (Text-guided Sparse Point Prompter) picks points; a frozen SAM turns them into masks; SMAgg
(Shallow Mask Aggregation) merges them; DMI (Decoupled Mask Injection) puts their context into the
features and the cost map; CAT-Seg's aggregation decodes it, and the answer is smoothed within the
masks. Section numbers below are
docs/method.md's. An image enters as one or more square *views* of one canvas (`ops.views`); masks
are made once for the canvas and cut into the views.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import Remat, SegmenterConfig, check_config
from sammi_jax.errors import SammiError
from sammi_jax.layers import TransposedConv
from sammi_jax.models.aggregator import Aggregator, choose_classes
from sammi_jax.models.class_texts import ClassTexts, text_embeddings
from sammi_jax.models.clip import Clip
from sammi_jax.models.cost_map import cost_map
from sammi_jax.models.dmi import Dmi
from sammi_jax.models.proposals import (
    MaskProposals,
    Perturb,
    SamEmbeddings,
    SamInput,
    propose_masks,
)
from sammi_jax.models.sam.sam import Sam
from sammi_jax.models.smoothing import RegionLogits, canvas_logits
from sammi_jax.models.tspp import Tspp, class_distribution
from sammi_jax.ops.views import ViewLayout, cut_masks, stitch
from sammi_jax.typing import Array, Float, Int, Leaf

GUIDANCE_SCALES = (2, 4)  # F_h1 and F_h2 have 2 and 4 pixels a cell along a side
CLIP_SCALE = 100.0  # inverse temperature of CLIP's own class distribution


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterOutput:
    """What one forward pass gives; all but the logits are None for CAT-Seg."""

    logits: Leaf  # [b, v, t, 4h, 4w]
    tspp_logits: Leaf | None  # [b, v, h, w, t]; None without TSPP
    proposals: MaskProposals | None
    regions: RegionLogits | None  # for `models.smoothing`; None where it is off


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageFeatures:
    """CLIP's features of a batch of images, each as v views."""

    low: Leaf  # F_l [b, v, h, w, d]
    high: tuple[Leaf, Leaf]  # F_h1 [b, v, 2h, 2w, c1], F_h2 [b, v, 4h, 4w, c2]


class Sammi(nnx.Module):
    """CAT-Seg where ``config.masks`` is None, SAM-MI otherwise.

    Raises:
        SammiError: the configuration's sizes do not fit together.
    """

    def __init__(self, config: SegmenterConfig, *, rngs: nnx.Rngs):
        check_config(config)
        aggregator, masks = config.aggregator, config.masks
        width, embed_dim = config.clip.vision.width, config.clip.embed_dim
        first, second = aggregator.decoder_guidance_dims
        self.config = config
        self.clip = Clip(config.clip, rngs=rngs)
        self.upsample1 = TransposedConv(width, first, GUIDANCE_SCALES[0], rngs=rngs)
        self.upsample2 = TransposedConv(width, second, GUIDANCE_SCALES[1], rngs=rngs)
        self.aggregator = Aggregator(aggregator, embed_dim, rngs=rngs)
        if masks is None:
            return
        self.sam = Sam(masks.sam, rngs=rngs)
        if masks.tspp is not None:
            self.tspp = Tspp(masks.tspp, embed_dim, rngs=rngs)
        self.dmi = Dmi(masks.dmi, aggregator, embed_dim, rngs=rngs)

    def encode_text(
        self, token_ids: Int[Array, "t p l"], remat: Remat = "none"
    ) -> Float[Array, "t p d"]:
        """F_t: unit-length text embeddings of every class and template."""
        return text_embeddings(self.clip, token_ids, remat)

    def encode_views(
        self, views: Float[Array, "b v s s 3"], remat: Remat = "none"
    ) -> ImageFeatures:
        """F_l, F_h1 and F_h2 of CLIP-normalized square images (docs/catseg.md part a)."""
        images = rearrange(views, "b v h w c -> (b v) h w c")
        low, (tap1, tap2) = self.clip.encode_dense(images, self.config.taps, remat)
        features = ImageFeatures(low, (self.upsample1(tap1), self.upsample2(tap2)))
        return jax.tree.map(
            lambda x: rearrange(x, "(b v) ... -> b v ...", b=views.shape[0]), features
        )

    def __call__(
        self,
        views: Float[Array, "b v s s 3"],
        sam_input: SamInput | SamEmbeddings | None,
        text: ClassTexts,
        *,
        layout: ViewLayout,
        pooling_size: int,
        remat: Remat = "none",
        perturb: Perturb | None = None,
        proposals: MaskProposals | None = None,
        keep_classes: int | None = None,
    ) -> SegmenterOutput:
        """Class logits of every view.

        Args:
            views: CLIP-normalized squares of side ``clip_size``: the windows of ``layout``, then
                its global view.
            sam_input: the same images for SAM, encoded or not; None for CAT-Seg, and where
                ``proposals`` are given.
            text: the classes.
            layout: how the views lie on the canvas.
            pooling_size: pooling of the class attention (training: the configuration's; else 1).
            remat: what the backward pass recomputes.
            perturb: of SAM's masks, in training; None: they stay as they are.
            proposals: masks from elsewhere, used as they are in the place of SAM's and SMAgg's.
            keep_classes: decode only so many classes of each image, those that its cost map
                supports most; the others' logits are -100. None: all.

        Raises:
            SammiError: the model has masks, and neither an image for SAM nor masks are given; or
                it has none and masks are given.
        """
        features = self.encode_views(views, remat)
        chosen = self._choose(features, text, keep_classes)
        if self.config.masks is None:
            if proposals is not None:
                raise SammiError("this model is a CAT-Seg, which takes no masks")
            logits = self._decode(features, None, text, chosen, layout, pooling_size, remat)
            return SegmenterOutput(logits, None, None, None)
        evidence, tspp_logits = self.class_evidence(features, text)
        if proposals is None:
            if sam_input is None:
                raise SammiError("this model has SAM masks: give it the image for SAM as well")
            proposals = propose_masks(
                self.sam,
                self.config.masks,
                sam_input,
                distribution=stitch(class_distribution(evidence, text.mask), layout),
                shallow=stitch(features.high[1], layout),
                perturb=perturb,
            )
        logits = self._decode(features, proposals, text, chosen, layout, pooling_size, remat)
        regions = None
        if self.dmi.config.smoothing:
            regions = self.dmi.smoothing(_on_canvas(logits, layout), proposals)
        return SegmenterOutput(logits, tspp_logits, proposals, regions)

    def _choose(
        self, features: ImageFeatures, text: ClassTexts, keep_classes: int | None
    ) -> Int[Array, "b k"] | None:
        """The classes that each image keeps, over all its views; None: no choice is made here.

        By largest cosine, as CAT-Seg chooses (docs/catseg.md c), but for the image as a whole: a
        class that one view left out would weigh on the mean where views overlap.
        """
        num_classes = text.features.shape[0]
        limit = min(num_classes, self.config.aggregator.pad_length or num_classes)
        if keep_classes is None or keep_classes >= limit:
            return None
        cosines = jax.vmap(cost_map, in_axes=(1, None), out_axes=1)(features.low, text.features)
        cosines = rearrange(cosines, "b v h w t p -> b (v h) w t p")
        mask = jnp.broadcast_to(text.mask, (cosines.shape[0], num_classes))
        return choose_classes(cosines, mask, keep_classes)

    def class_evidence(
        self, features: ImageFeatures, text: ClassTexts
    ) -> tuple[Float[Array, "b v h w t"], Float[Array, "b v h w t"] | None]:
        """What points and SMAgg know of the classes, and what TSPP's loss sees (section 2)."""
        if not hasattr(self, "tspp"):  # no TSPP: class evidence is CLIP's own similarity
            cosines = jax.vmap(cost_map, in_axes=(1, None), out_axes=1)(features.low, text.features)
            return CLIP_SCALE * cosines.mean(axis=-1), None
        logits = self.tspp.class_logits(features.low, text.features)
        return logits, self.tspp.calibrated(logits)

    def _decode(
        self,
        features: ImageFeatures,
        proposals: MaskProposals | None,
        text: ClassTexts,
        chosen: Int[Array, "b k"] | None,
        layout: ViewLayout,
        pooling_size: int,
        remat: Remat,
    ) -> Float[Array, "b v t h4 w4"]:
        """Cost map, injection, aggregation and decoder (1, 5 and 6), one view at a time."""
        masks = None if proposals is None else cut_masks(proposals.masks, layout)

        def decode(view: tuple[ImageFeatures, Array | None]) -> Array:
            features, masks = view
            low, high = features.low, features.high
            cost, injection = cost_map(low, text.features), None
            if proposals is not None and masks is not None:
                valid = proposals.valid & masks.any(axis=(-2, -1))
                injection, low, high = self.dmi(low, high, text.features, masks, valid)
            return self.aggregator(cost, text, low, high, pooling_size, remat, injection, chosen)

        by_view = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (features, masks))
        if layout.num_views == 1:
            return decode(jax.tree.map(lambda x: x[0], by_view))[:, None]
        # one after the other: the class maps of one view already fill the memory
        return jnp.moveaxis(jax.lax.map(decode, by_view), 0, 1)


def _on_canvas(logits: Float[Array, "b v t h w"], layout: ViewLayout) -> Float[Array, "b t h2 w2"]:
    """The views' logits as one canvas; of several views the probabilities are averaged."""
    if layout.num_views == 1:
        return logits[:, 0]
    maps = rearrange(jax.nn.sigmoid(logits), "b v t h w -> b v h w t")
    return rearrange(canvas_logits(stitch(maps, layout)), "b h w t -> b t h w")
