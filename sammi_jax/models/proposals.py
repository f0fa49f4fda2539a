"""Mask proposals of an image: points, SAM's masks, the filter, SMAgg (docs/method.md, 2 to 4).

SAM is frozen and the choice of points has no gradient, so none leaves this module.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from sammi_jax.config.model import MaskConfig, MaskFilterConfig
from sammi_jax.models.sam.sam import Sam
from sammi_jax.models.smagg import group_masks, unite_masks
from sammi_jax.models.tspp import PointPrompts, grid_points, sample_points
from sammi_jax.ops.masks import mask_area, sample_region, stability_score
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Leaf

MASK_SCALE = 8  # pixels of the masks a cell of the cost map: about the resolution of SAM's masks

# Changes SAM's masks [b, n, H, W], their validity and quality [b, n], before they are aggregated.
Perturb = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskProposals:
    """Masks of one canvas each, and the points they come from."""

    points: Leaf  # [b, k, 2] (x, y) as fractions of the image
    point_valid: Leaf  # [b, k] bool
    masks: Leaf  # [b, n, H, W] bool on the canvas, `MASK_SCALE` pixels a cell
    valid: Leaf  # [b, n] bool
    quality: Leaf  # [b, n] float32: the IoU that SAM (or the giver) expects of the mask


def given_proposals(
    masks: Bool[Array, "b n h w"], valid: Bool[Array, "b n"], quality: Float[Array, "b n"]
) -> MaskProposals:
    """Masks that come from elsewhere: there are no points behind them."""
    batch = masks.shape[0]
    masks = masks & valid[..., None, None]
    points, point_valid = jnp.zeros((batch, 0, 2)), jnp.zeros((batch, 0), bool)
    return MaskProposals(points, point_valid, masks, valid, quality)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamInput:
    """A batch of whole images as SAM wants them."""

    images: Leaf  # [b, S, S, 3] SAM-normalized, zero padded right and below
    sizes: Leaf  # [b, 2] float (height, width) of the image inside the padding, in pixels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamEmbeddings:
    """A batch of whole images as SAM's encoder left them, when it ran before."""

    embeddings: Leaf  # [b, g, g, c] any float type
    sizes: Leaf  # as those of `SamInput`


def propose_masks(
    sam: Sam,
    config: MaskConfig,
    sam_input: SamInput | SamEmbeddings,
    distribution: Float[Array, "b g g t"],
    shallow: Float[Array, "b h w c"],
    perturb: Perturb | None = None,
) -> MaskProposals:
    """Points where the classes say so, SAM's best mask for each, filtered and aggregated.

    Args:
        sam: the frozen SAM.
        config: of points, filter and aggregation.
        sam_input: the images for SAM, encoded or not.
        distribution: class probabilities of every cell of the canvas.
        shallow: CLIP's shallow features F_h2 on the canvas.
        perturb: applied to SAM's masks; None: they stay as they are.
    """
    prompts = choose_points(config, distribution)
    points = prompts.cells / distribution.shape[1]
    side = MASK_SCALE * distribution.shape[1]
    masks, valid, quality = segment_points(
        sam, config.filter, points, prompts.valid, sam_input, (side, side)
    )
    if perturb is not None:
        masks, valid, quality = perturb(masks, valid, quality)
    if config.smagg is not None:
        distribution = resize(distribution, (shallow.shape[1], shallow.shape[2]))
        member = group_masks(masks, valid, shallow, distribution, config.smagg)
        masks, valid, quality = unite_masks(member, masks, quality)
    return jax.lax.stop_gradient(MaskProposals(points, prompts.valid, masks, valid, quality))


def choose_points(config: MaskConfig, distribution: Float[Array, "b g g t"]) -> PointPrompts:
    """TSPP's points, or where there is no TSPP a grid (section 2)."""
    if config.tspp is None:
        return grid_points(config.grid_points, distribution.shape[1], batch=distribution.shape[0])
    tspp = config.tspp
    return sample_points(
        distribution, tspp.num_points, tspp.min_score, tspp.sigma, interior=tspp.interior
    )


def segment_points(
    sam: Sam,
    config: MaskFilterConfig,
    points: Float[Array, "b k 2"],
    point_valid: Bool[Array, "b k"],
    sam_input: SamInput | SamEmbeddings,
    size: tuple[int, int],
) -> tuple[Bool[Array, "b k h w"], Bool[Array, "b k"], Float[Array, "b k"]]:
    """SAM's best mask for each point, whether the filter lets it pass, and the IoU expected (3).

    Args:
        sam: the frozen SAM.
        config: of the filter.
        points: (x, y) as fractions of the image.
        point_valid: which slots hold a point.
        sam_input: the images for SAM, encoded or not.
        size: (height, width) of the masks, whose frame is the image.
    """
    scale = sam_input.sizes[:, None, ::-1]  # (height, width) -> (x, y)
    labels = jnp.where(point_valid, 1, -1)
    if isinstance(sam_input, SamInput):
        embeddings = sam.encode_image(sam_input.images)
    else:
        embeddings = sam_input.embeddings.astype(sam.dtype)
    # SAM counts pixels from their corner and adds the half to the center itself.
    masks, iou = sam.decode(embeddings, points * scale - 0.5, labels)
    best = jnp.argmax(iou, axis=-1)
    iou = jnp.take_along_axis(iou, best[..., None], axis=-1)[..., 0]
    logits = jnp.take_along_axis(masks, best[..., None, None, None], axis=2)[:, :, 0]
    inside = sam_input.sizes / sam.config.image_size  # the padding is not part of the image
    boxes = jnp.concatenate([jnp.zeros_like(inside), inside], axis=-1)
    on_canvas = sample_region(logits, boxes, size) > 0.0
    stability, area = stability_score(logits, config.stability_offset), mask_area(on_canvas)
    valid = (
        point_valid
        & (iou >= config.min_iou)
        & (stability >= config.min_stability)
        & (area >= config.min_area)
        & (area <= config.max_area)
    )
    return on_canvas & valid[..., None, None], valid, iou
