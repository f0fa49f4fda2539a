"""SAM-MI (https://arxiv.org/abs/2511.20027), put together; without masks it is CAT-Seg.

The paper's figure from left to right: CLIP's dense features and text embeddings give a cost map;
TSPP (Text-guided Sparse Point Prompter) picks points; a frozen SAM turns them into masks; SMAgg
(Shallow Mask Aggregation) merges them; DMI (Decoupled Mask Injection) puts their context into the
features and the cost map; CAT-Seg's aggregation decodes it. Section numbers below are
docs/method.md's. An image enters as one or more square *views* of one canvas (`ops.views`); masks
are made once for the canvas and cut into the views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config import MaskConfig, MaskFilterConfig, Remat, SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.layers import TransposedConv
from sammi_jax.models.aggregator import Aggregator
from sammi_jax.models.clip import Clip
from sammi_jax.models.cost_map import cost_map
from sammi_jax.models.dmi import Dmi
from sammi_jax.models.sam.sam import Sam
from sammi_jax.models.smagg import aggregate_masks
from sammi_jax.models.tspp import PointPrompts, Tspp, class_distribution, grid_points, sample_points
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.ops.masks import mask_area, sample_region, stability_score
from sammi_jax.ops.resize import resize
from sammi_jax.ops.sharding import spread, whole
from sammi_jax.ops.views import ViewLayout, cut_masks, stitch
from sammi_jax.typing import Array, Bool, Float, Int

# Changes SAM's masks [b, n, H, W] and their validity [b, n] before they are aggregated.
Perturb = Callable[[Array, Array], tuple[Array, Array]]

GUIDANCE_SCALES = (2, 4)  # F_h1 and F_h2 have 2 and 4 pixels a cell along a side


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskProposals:
    """Masks of one canvas each, and the points they come from."""

    points: Array  # [b, k, 2] (x, y) as fractions of the image
    point_valid: Array  # [b, k] bool
    masks: Array  # [b, n, H, W] bool on the canvas, 4 pixels a cell
    valid: Array  # [b, n] bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterOutput:
    """What one forward pass gives; the last two are None for CAT-Seg."""

    logits: Array  # [b, v, t, 4h, 4w]
    tspp_logits: Array | None  # [b, v, h, w, t]
    proposals: MaskProposals | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageFeatures:
    """CLIP's features of a batch of views."""

    low: Array  # F_l [n, h, w, d]
    high: tuple[Array, Array]  # F_h1 [n, 2h, 2w, c1], F_h2 [n, 4h, 4w, c2]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamInput:
    """A batch of whole images as SAM wants them."""

    images: Array  # [b, S, S, 3] SAM-normalised, zero padded right and below
    sizes: Array  # [b, 2] float (height, width) of the image inside the padding, in pixels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamEmbeddings:
    """A batch of whole images as SAM's encoder left them, when it ran before."""

    embeddings: Array  # [b, g, g, c] any float type
    sizes: Array  # as those of `SamInput`


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
        self.dmi = Dmi(masks.dmi, embed_dim, (first, second), aggregator.num_templates, rngs=rngs)

    def encode_text(
        self, token_ids: Int[Array, "t p l"], remat: Remat = "none"
    ) -> Float[Array, "t p d"]:
        """F_t: unit-length text embeddings of every class and template."""
        return text_embeddings(self.clip, token_ids, remat)

    def encode_views(self, views: Float[Array, "n s s 3"], remat: Remat = "none") -> ImageFeatures:
        """F_l, F_h1 and F_h2 of CLIP-normalised square images (docs/catseg.md part a)."""
        low, (tap1, tap2) = self.clip.encode_dense(views, self.config.taps, remat)
        return ImageFeatures(low, (self.upsample1(tap1), self.upsample2(tap2)))

    def __call__(
        self,
        views: Float[Array, "b v s s 3"],
        sam_input: SamInput | SamEmbeddings | None,
        text_features: Float[Array, "t p d"],
        class_mask: Bool[Array, " t"],
        *,
        layout: ViewLayout,
        pooling_size: int,
        remat: Remat = "none",
        perturb: Perturb | None = None,
    ) -> SegmenterOutput:
        """Class logits of every view.

        Args:
            views: CLIP-normalised squares of side ``clip_size``: the windows of ``layout``, then
                its global view.
            sam_input: the same images for SAM, encoded or not; None for CAT-Seg only.
            text_features: from `encode_text`.
            class_mask: False for classes that only pad the axis.
            layout: how the views lie on the canvas.
            pooling_size: pooling of the class attention (training: the configuration's; else 1).
            remat: of inner values in the backward pass.
            perturb: of SAM's masks, in training; None: they stay as they are.
        """
        b = views.shape[0]
        features = self.encode_views(rearrange(views, "b v h w c -> (b v) h w c"), remat)
        tspp_logits = proposals = view_masks = None
        if self.config.masks is not None:
            if sam_input is None:
                raise SammiError("this model has SAM masks: give it the image for SAM as well")
            if self.config.masks.tspp is not None:
                tspp_logits = self.tspp.class_logits(features.low, text_features)
            proposals = self._propose(
                b, features, tspp_logits, sam_input, text_features, class_mask, layout, perturb
            )
            view_masks = cut_masks(proposals.masks, layout)
        logits = self._decode_views(
            b, features, view_masks, proposals, text_features, class_mask, pooling_size, remat
        )
        if tspp_logits is not None:
            tspp_logits = rearrange(
                self.tspp.calibrated(tspp_logits), "(b v) h w t -> b v h w t", b=b
            )
        return SegmenterOutput(logits, tspp_logits, proposals)

    def _propose(
        self,
        b: int,
        features: ImageFeatures,
        tspp_logits: Array | None,
        sam_input: SamInput | SamEmbeddings,
        text_features: Array,
        class_mask: Array,
        layout: ViewLayout,
        perturb: Perturb | None,
    ) -> MaskProposals:
        """Points, SAM's masks and their aggregation on the canvas: sections 2 to 4, no gradient."""
        config = cast(MaskConfig, self.config.masks)
        on_canvas = lambda maps: stitch(rearrange(maps, "(b v) ... -> b v ...", b=b), layout)  # noqa: E731
        if tspp_logits is None:  # no TSPP: class evidence is CLIP's own similarity
            tspp_logits = 100.0 * cost_map(features.low, text_features).mean(axis=-1)
        distribution = on_canvas(class_distribution(tspp_logits, class_mask))
        if config.tspp is None:
            prompts = grid_points(config.grid_points, layout.canvas, batch=b)
        else:
            prompts = sample_points(
                distribution, config.tspp.num_points, config.tspp.min_score, config.tspp.sigma
            )
        points = prompts.cells / layout.canvas
        masks, valid = self._segment_anything(config, points, prompts, sam_input, layout)
        if perturb is not None:
            masks, valid = perturb(masks, valid)
        if config.smagg is not None:
            size = (masks.shape[-2], masks.shape[-1])
            masks, valid = aggregate_masks(
                masks, valid, on_canvas(features.high[1]), resize(distribution, size), config.smagg
            )
        proposals = MaskProposals(points, prompts.valid, masks, valid)
        return jax.tree.map(jax.lax.stop_gradient, proposals)

    def _segment_anything(
        self,
        config: MaskConfig,
        points: Float[Array, "b k 2"],
        prompts: PointPrompts,
        sam_input: SamInput | SamEmbeddings,
        layout: ViewLayout,
    ) -> tuple[Bool[Array, "b k h w"], Bool[Array, "b k"]]:
        """SAM's best mask for each point, on the canvas (section 3)."""
        scale = sam_input.sizes[:, None, ::-1]  # (height, width) -> (x, y)
        labels = jnp.where(prompts.valid, 1, -1)
        if isinstance(sam_input, SamInput):
            embeddings = self.sam.encode_image(sam_input.images)
        else:
            embeddings = sam_input.embeddings.astype(self.sam.dtype)
        # SAM counts pixels from their corner and adds the half to the centre itself.
        masks, iou = self.sam.decode(embeddings, points * scale - 0.5, labels)
        best = jnp.argmax(iou, axis=-1)
        iou = jnp.take_along_axis(iou, best[..., None], axis=-1)[..., 0]
        logits = jnp.take_along_axis(masks, best[..., None, None, None], axis=2)[:, :, 0]
        inside = sam_input.sizes / config.sam.image_size  # the padding is not part of the image
        boxes = jnp.concatenate([jnp.zeros_like(inside), inside], axis=-1)
        side = layout.canvas * GUIDANCE_SCALES[1]
        on_canvas = sample_region(logits, boxes, (side, side)) > 0.0
        keep = _passes(
            config.filter,
            iou,
            stability_score(logits, config.filter.stability_offset),
            mask_area(on_canvas),
        )
        valid = prompts.valid & keep
        return on_canvas & valid[..., None, None], valid

    def _decode_views(
        self,
        b: int,
        features: ImageFeatures,
        view_masks: Array | None,
        proposals: MaskProposals | None,
        text_features: Array,
        class_mask: Array,
        pooling_size: int,
        remat: Remat,
    ) -> Float[Array, "b v t h w"]:
        """Injection, aggregation and decoder (sections 5 and 6), one view at a time."""
        by_view = jax.tree.map(lambda x: rearrange(x, "(b v) ... -> v b ...", b=b), features)
        masks = None if view_masks is None else rearrange(view_masks, "b v ... -> v b ...")

        def decode(view: tuple[ImageFeatures, Array | None]) -> Array:
            features, masks = view
            cost = cost_map(features.low, text_features)
            low, high = features.low, features.high
            if masks is not None:
                valid = cast(MaskProposals, proposals).valid & masks.any(axis=(-2, -1))
                cost, low, high = self._inject(cost, features, text_features, masks, valid)
            return self.aggregator(cost, text_features, low, high, class_mask, pooling_size, remat)

        if by_view.low.shape[0] == 1:
            logits = decode(jax.tree.map(lambda x: x[0], (by_view, masks)))[None]
        else:  # sequentially: the class maps of one view already fill the memory
            logits = jax.lax.map(decode, (by_view, masks))
        return rearrange(logits, "v b ... -> b v ...")

    def _inject(
        self,
        cost: Float[Array, "b h w t p"],
        features: ImageFeatures,
        text_features: Float[Array, "t p d"],
        masks: Bool[Array, "b n h4 w4"],
        valid: Bool[Array, "b n"],
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """Decoupled Mask Injection into one view (section 5)."""
        cells = _average(masks, GUIDANCE_SCALES[1])
        low = self.dmi.low(features.low, cells, valid)
        cost = self.dmi.inject_cost(cost, low, text_features, valid.any(axis=-1))
        half = _average(masks, GUIDANCE_SCALES[1] // GUIDANCE_SCALES[0]) >= 0.5
        high1 = self.dmi.high(0, features.high[0], half, valid)
        high2 = self.dmi.high(1, features.high[1], masks, valid)
        return cost, low, (high1, high2)


def _average(masks: Bool[Array, "b n h w"], factor: int) -> Float[Array, "b n h2 w2"]:
    blocks = rearrange(masks, "b n (h i) (w j) -> b n h i w j", i=factor, j=factor)
    return blocks.astype(jnp.float32).mean(axis=(3, 5))


def _passes(config: MaskFilterConfig, iou: Array, stability: Array, area: Array) -> Array:
    return (
        (iou >= config.min_iou)
        & (stability >= config.min_stability)
        & (area >= config.min_area)
        & (area <= config.max_area)
    )


def text_embeddings(
    clip: Clip, token_ids: Int[Array, "t p l"], remat: Remat = "none"
) -> Float[Array, "t p d"]:
    """Unit-length CLIP embeddings of every class and template."""
    # All images share the texts, so every device of a pod would encode all of them, which is more
    # work than its images: each takes a share instead.
    texts = spread(rearrange(token_ids, "t p l -> (t p) l"))
    features = whole(l2_normalize(clip.encode_text(texts, remat)))
    return rearrange(features, "(t p) d -> t p d", p=token_ids.shape[1])


def view_layout(config: SegmenterConfig) -> ViewLayout:
    """The views of inference: one for ``sliding=None``, else windows and a global view."""
    window = config.aggregator.grid_size
    if config.sliding is None:
        return ViewLayout(window)
    cell = config.crop_size // window
    stride = config.sliding.stride // cell
    return ViewLayout(
        window, stride, 1 + (config.sliding.output_size - config.crop_size) // config.sliding.stride
    )


def check_config(config: SegmenterConfig) -> None:
    """Refuse sizes that do not fit together.

    Raises:
        SammiError: naming the two fields and what they should be.
    """
    grid, vision = config.aggregator.grid_size, config.clip.vision
    if config.clip_size != grid * vision.patch_size:
        raise SammiError(
            f"clip_size {config.clip_size} must be aggregator.grid_size x clip.vision.patch_size "
            f"= {grid} x {vision.patch_size} = {grid * vision.patch_size}"
        )
    if config.crop_size % grid:
        raise SammiError(
            f"crop_size {config.crop_size} must be a multiple of aggregator.grid_size {grid}"
        )
    if not 0 <= config.taps[0] < config.taps[1] < vision.num_layers:
        raise SammiError(
            f"taps {config.taps} must ascend and lie below clip.vision.num_layers "
            f"{vision.num_layers}"
        )
    sliding, cell = config.sliding, config.crop_size // grid
    if sliding is not None and (
        sliding.stride % cell or (sliding.output_size - config.crop_size) % sliding.stride
    ):
        raise SammiError(
            f"sliding.output_size {sliding.output_size} must be crop_size {config.crop_size} plus "
            f"a multiple of sliding.stride {sliding.stride}, and the stride a multiple of the "
            f"cell's {cell} pixels"
        )
