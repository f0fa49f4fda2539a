"""From prepared pixels to class probabilities, on the device.

Sources: docs/catseg.md part f; docs/method.md, 8.

All functions are pure and meant to run inside one `jax.jit`.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.inference.inputs import SegmenterInput
from sammi_jax.models.aggregator import ABSENT_LOGIT
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.clip import Clip
from sammi_jax.models.cost_map import cost_map
from sammi_jax.models.proposals import MaskProposals, SamInput, given_proposals
from sammi_jax.models.sammi import Sammi, SegmenterOutput
from sammi_jax.models.smoothing import RegionLogits, smooth_probabilities
from sammi_jax.ops.clip_image import clip_views
from sammi_jax.ops.resize import resize
from sammi_jax.ops.sam_image import PIXEL_MEAN, PIXEL_STD
from sammi_jax.ops.views import ViewLayout, cut_windows, stitch
from sammi_jax.typing import Array, Bool, Float, Int, Leaf, UInt8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ViewScores:
    """Class maps of every view as the network gives them, before the views are combined."""

    maps: Leaf  # [b, v, t, h, w]: logits, or cosines of a zero-shot CLIP
    proposals: MaskProposals | None = None
    regions: RegionLogits | None = None

    def choose(self, classes: Int[Array, " k"]) -> "ViewScores":
        """The maps of some classes."""
        regions = self.regions
        if regions is not None:
            regions = replace(regions, means=jnp.take(regions.means, classes, axis=2))
        return replace(self, maps=jnp.take(self.maps, classes, axis=2), regions=regions)

    def decoded(self) -> Bool[Array, " t"]:
        """Which classes any view of any image has kept (`models.aggregator.Aggregator`)."""
        return jnp.max(self.maps, axis=(0, 1, 3, 4)) > ABSENT_LOGIT


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prediction:
    """Class probabilities on the canvas, and the masks behind them (None for CAT-Seg)."""

    probabilities: Leaf  # [b, t, O, O] in [0, 1]; those of padded classes mean nothing
    proposals: MaskProposals | None


def sam_views(images: UInt8[Array, "b s s 3"], sizes: Float[Array, "b 2"]) -> SamInput:
    """SAM's normalization of padded uint8 RGB; the padding stays zero.

    The padding is already there, so that images of any aspect share one compiled program.
    """
    rows, columns = (
        jnp.arange(length)[None] < sizes[:, axis, None]
        for axis, length in enumerate(images.shape[1:3])
    )
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    mean, std = (np.array(value, np.float32)[None, None, None] for value in (PIXEL_MEAN, PIXEL_STD))
    normalized = (images - mean) / std
    return SamInput(jnp.where(inside, normalized, 0.0), sizes)


def zero_shot_views(
    clip: Clip,
    inputs: SegmenterInput,
    text: ClassTexts,
    config: SegmenterConfig,
    layout: ViewLayout,
) -> ViewScores:
    """CLIP's own cost map of every view: cosines with the one text feature of each class."""
    views = image_views(inputs, config, layout)
    features, _ = clip.encode_dense(rearrange(views, "b v h w c -> (b v) h w c"))
    cost = cost_map(features, text.features)[..., 0]
    return ViewScores(rearrange(cost, "(b v) h w t -> b v t h w", v=layout.num_views))


def blend_cosines(
    scores: ViewScores, config: SegmenterConfig, layout: ViewLayout
) -> Float[Array, "b t h2 w2"]:
    """Cosines on the canvas from those of every view: one for each cell.

    Where windows lie no whole cells apart, at the canvas's own pixels.
    """
    maps = rearrange(scores.maps, "b v t h w -> b v h w t")
    if not layout.in_cells:
        maps = resize(maps, (config.crop_size, config.crop_size))
    stitched = stitch(maps, layout)
    return rearrange(stitched, "b h w t -> b t h w")


def forward_input(
    model: Sammi,
    inputs: SegmenterInput,
    text: ClassTexts,
    layout: ViewLayout,
    keep_classes: int | None = None,
) -> SegmenterOutput:
    """Logits of every view of whole images: windows and the global view, or one view."""
    sam_input = proposals = None
    if inputs.masks is not None:
        proposals = given_proposals(inputs.masks, inputs.mask_valid, inputs.mask_quality)
    elif model.config.masks is not None:
        sam_input = sam_views(inputs.sam_image, inputs.sam_size)
    return model(
        image_views(inputs, model.config, layout),
        sam_input,
        text,
        layout=layout,
        pooling_size=1,  # training pools the class attention, evaluation does not
        proposals=proposals,
        keep_classes=keep_classes,
    )


def image_views(
    inputs: SegmenterInput, config: SegmenterConfig, layout: ViewLayout
) -> Float[Array, "b v s s 3"]:
    """CLIP's input for every view of whole images."""
    views = inputs.canvas[:, None]
    if layout.has_global_view:
        windows = cut_windows(inputs.canvas, layout, config.crop_size // layout.window)
        views = jnp.concatenate([windows, inputs.overview[:, None]], axis=1)
    return clip_views(views, config.clip_size)


def blend_logits(
    scores: ViewScores, config: SegmenterConfig, layout: ViewLayout
) -> Float[Array, "b t o o"]:
    """Class probabilities (sigmoid) on the canvas from every view's logits, smoothed by masks.

    With windows, each view's logits are resized to the crop before the sigmoid. A single view's
    are not: CAT-Seg's plain mode applies the sigmoid first (docs/catseg.md part f).
    """
    maps = rearrange(scores.maps, "b v t h w -> b v h w t")
    if layout.has_global_view:
        maps = resize(maps, (config.crop_size, config.crop_size))
    blended = rearrange(stitch(jax.nn.sigmoid(maps), layout), "b h w t -> b t h w")
    if scores.regions is None:
        return blended
    return smooth_probabilities(blended, scores.regions)


def resize_scores(
    probabilities: Float[Array, "*b t h w"], size: tuple[int, int]
) -> Float[Array, "*b t h2 w2"]:
    """Bilinear resize of class maps to the image's (height, width)."""
    return resize(probabilities[..., None], size)[..., 0]
