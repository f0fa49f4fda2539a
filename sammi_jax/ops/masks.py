"""Masks as arrays ``[b, n, h, w]``: measures, pooling, window filters, and cutting a region out.

Everything over pairs of masks or over masks and features is a matrix product over the pixels, so
that 64 masks of 96 x 96 with 128 channels never make an ``n x h x w x c`` array.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.typing import Array, Bool, Float

Masks = Bool[Array, "b n h w"] | Float[Array, "b n h w"]  # fractions in [0, 1] where float


def mask_pool(masks: Masks, features: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    """Mean of the features over each mask, weighted where the mask is fractional.

    An empty mask gives zeros.

    Example:
        >>> mask_pool(jnp.asarray([[[[True, False]]]]), jnp.asarray([[[[3.0], [5.0]]]]))
        Array([[[3.]]], dtype=float32)
    """
    weights = masks.astype(features.dtype)
    total = jnp.einsum("bnhw,bhwc->bnc", weights, features)
    return _divide(total, weights.sum(axis=(-2, -1))[..., None])


def mask_spread(masks: Masks, tokens: Float[Array, "b n c"]) -> Float[Array, "b h w c"]:
    """Mean over the masks that cover a pixel of their tokens: the way back from `mask_pool`.

    Weighted where the masks are fractional. A pixel that no mask covers gets zeros.
    """
    weights = masks.astype(tokens.dtype)
    total = jnp.einsum("bnhw,bnc->bhwc", weights, tokens)
    return _divide(total, weights.sum(axis=1)[..., None])


def average_pool(masks: Masks, factor: int) -> Float[Array, "b n h2 w2"]:
    """Each mask's share of the blocks of ``factor x factor`` pixels."""
    blocks = rearrange(masks, "b n (h i) (w j) -> b n h i w j", i=factor, j=factor)
    return blocks.astype(jnp.float32).mean(axis=(3, 5))


def _divide(total: Array, weight: Array) -> Array:
    """``total / weight``, zero (with a finite gradient) where the weight is zero."""
    covered = weight > 0
    return jnp.where(covered, total / jnp.where(covered, weight, 1.0), 0.0)


def mask_area(masks: Masks) -> Float[Array, "b n"]:
    """Fraction of the frame that each mask covers."""
    return masks.astype(jnp.float32).mean(axis=(-2, -1))


def stability_score(
    logits: Float[Array, "b n h w"], offset: float | Float[Array, ""]
) -> Float[Array, "b n"]:
    """IoU of the masks thresholded at ``+offset`` and at ``-offset``, in [0, 1].

    As segment_anything/utils/amg.py ``calculate_stability_score`` with mask threshold 0, but 0
    instead of NaN where both are empty.
    """
    return iou(logits > offset, logits > -offset)


def intersections(masks: Bool[Array, "b n h w"]) -> Float[Array, "b n n"]:
    """Pixels that each pair of masks shares; the diagonal holds the areas in pixels.

    Counts are exact whatever the matmul precision: zeros and ones are exact in bfloat16 and sums
    are kept in float32 (up to 2^24 pixels).
    """
    pixels = rearrange(masks, "b n h w -> b n (h w)").astype(jnp.float32)
    return jnp.einsum("bnp,bmp->bnm", pixels, pixels)


def iou(masks: Bool[Array, "b n h w"], others: Bool[Array, "b n h w"]) -> Float[Array, "b n"]:
    """``|i and j| / |i or j|`` of each mask and the other in its place, 0 where both are empty."""
    shared, union = (
        jnp.sum(pixels, axis=(-2, -1), dtype=jnp.float32)
        for pixels in (masks & others, masks | others)
    )
    return _divide(shared, union)


def containment(masks: Bool[Array, "b n h w"]) -> Float[Array, "b n n"]:
    """``|i and j| / min(|i|, |j|)``: 1 where one mask lies in the other, 0 for an empty mask."""
    shared = intersections(masks)
    area = jnp.diagonal(shared, axis1=-2, axis2=-1)
    return _divide(shared, jnp.minimum(area[:, :, None], area[:, None, :]))


def dilate(masks: Masks, cells: int) -> Masks:
    """Grow each mask by ``cells`` pixels: the maximum over a square of side ``2 * cells + 1``."""
    lowest = False if masks.dtype == jnp.bool_ else -jnp.inf
    masks = _slide(masks, cells, -2, jnp.maximum, lowest)
    return _slide(masks, cells, -1, jnp.maximum, lowest)


def boundary(masks: Masks) -> Float[Array, "b h w"]:
    """Boundary strength in [0, 1]: dilation minus erosion (3 x 3), the largest over the masks.

    The border of the frame is no boundary: pixels outside do not count.
    """
    masks = masks.astype(jnp.float32)
    return jnp.max(dilate(masks, 1) + dilate(-masks, 1), axis=1)


def box_mean(features: Float[Array, "b h w c"], size: int) -> Float[Array, "b h w c"]:
    """Mean over a square of odd side ``size``, of those pixels that exist."""
    radius = size // 2
    total = _slide(features, radius, -3, jnp.add, 0.0)
    total = _slide(total, radius, -2, jnp.add, 0.0)
    rows, columns = (_window_counts(length, radius) for length in features.shape[-3:-1])
    return total / (rows[:, None] * columns[None])[None, :, :, None]


def _slide(
    x: Array,
    radius: int,
    axis: int,
    combine: Callable[[Array, Array], Array],
    outside: float | bool,
) -> Array:
    """Combine each element with its neighbors up to ``radius`` away along one axis."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(x, padding, constant_values=outside)
    length, axis = x.shape[axis], axis % x.ndim
    shifted = (
        jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
        for start in range(2 * radius + 1)
    )
    return reduce(combine, shifted)


def _window_counts(length: int, radius: int) -> np.ndarray:
    """How many elements the window around each position holds, ``[length]`` float32."""
    position = np.arange(length)
    last = np.minimum(position + radius, length - 1)
    return (last - np.maximum(position - radius, 0) + 1).astype(np.float32)


def sample_region(
    masks: Float[Array, "b n h w"], boxes: Float[Array, "b 4"], size: tuple[int, int]
) -> Float[Array, "b n h2 w2"]:
    """Resample one box of each image's masks to ``size`` (height, width), bilinear.

    The center of output row i lies at ``y0 + (i + 0.5) / height * (y1 - y0)`` of the frame, as
    PyTorch's ``grid_sample(align_corners=False, padding_mode="border")``; never antialiased.

    Args:
        masks: logits or fractions.
        boxes: (y0, x0, y1, x1) as fractions of the masks' frame; they may be traced values.
        size: of the result.
    """
    y0, x0, y1, x1 = jnp.split(boxes, 4, axis=-1)
    rows = _hat_weights(y0, y1, masks.shape[-2], size[0]).astype(masks.dtype)
    columns = _hat_weights(x0, x1, masks.shape[-1], size[1]).astype(masks.dtype)
    masks = jnp.einsum("bih,bnhw->bniw", rows, masks)
    return jnp.einsum("bjw,bniw->bnij", columns, masks)


def _hat_weights(
    start: Float[Array, "b 1"], stop: Float[Array, "b 1"], in_size: int, out_size: int
) -> Float[Array, "b o i"]:
    """Linear interpolation weights from ``in_size`` pixels to ``out_size`` inside [start, stop]."""
    fraction = ((jnp.arange(out_size) + 0.5) / out_size)[None]
    position = (start + fraction * (stop - start)) * in_size - 0.5
    position = jnp.clip(position, 0.0, in_size - 1.0)
    return jnp.maximum(1.0 - jnp.abs(position[..., None] - jnp.arange(in_size)[None, None]), 0.0)
