"""SAM by prompts in the image's own pixels: points, boxes, masks, and a grid ("everything").

Original: facebookresearch/segment-anything, segment_anything/predictor.py and
automatic_mask_generator.py (one crop, the whole image; no removal of small regions).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sammi_jax.errors import SammiError
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.ops.sam_image import resized_shape, to_input_coordinates
from sammi_jax.typing import Array, Bool, Float, Int, NpArray

POINTS_AT_ONCE = 64  # of a grid
STABILITY_OFFSET = 1.0
_SURE = 10.0  # logit of a mask prompt
_SIDE_BUCKET = 256  # sides are padded to a multiple, so that few programs are compiled


@dataclass(frozen=True)
class SamImage:
    """An image that SAM has encoded, to be asked any number of times.

    Attributes:
        pixels: uint8 RGB ``[H, W, 3]``.
        embedding: ``[1, g, g, c]``, on the device.
    """

    pixels: NpArray
    embedding: Any

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True)
class SamMasks:
    """Masks of one image of H x W pixels.

    Attributes:
        masks: bool ``[n, H, W]``.
        iou: float32 ``[n]``, SAM's own estimate.
        stability: float32 ``[n]``: IoU of the mask at thresholds 1 and -1.
        boxes: int32 ``[n, 4]``, x0, y0, x1, y1 of the outermost pixels; zeros for an empty mask.
        logits: float32 ``[n, m, m]`` at SAM's own resolution: a mask prompt for a next question.
        points: float32 ``[n, 2]``, of a grid: the point (x, y) that the mask comes from; else None.
    """

    masks: NpArray
    iou: NpArray
    stability: NpArray
    boxes: NpArray
    logits: NpArray
    points: NpArray | None = None


@dataclass(frozen=True)
class Prompts:
    """``k`` prompts in pixels of the padded input; None where there are none of a kind."""

    points: NpArray | None  # float32 [k, p, 2]
    labels: NpArray | None  # int32 [k, p]
    boxes: NpArray | None  # float32 [k, 4]
    masks: NpArray | None  # float32 [k, m, m]
    count: int


def make_prompts(
    image: SamImage, side: int, mask_side: int, points: Any, labels: Any, boxes: Any, masks: Any
) -> Prompts:
    """Check prompts that are given in the image's pixels.

    Args:
        image: what they belong to.
        side: of SAM's input.
        mask_side: of mask prompts.
        points: (x, y) as ``[p, 2]``, all of one object, or ``[k, p, 2]``.
        labels: 1 on the object, 0 off it; of the points' shape; None: all on it.
        boxes: x0, y0, x1, y1 as ``[4]`` or ``[k, 4]``.
        masks: logits as ``[m, m]`` or ``[k, m, m]``.

    Raises:
        SammiError: no prompt, another shape, different numbers of prompts, a point outside the
            image, or a box without area.
    """
    found = {
        "points": _array("points", points, 3, (None, 2)),
        "boxes": _array("boxes", boxes, 2, (4,)),
        "masks": _array("mask prompts", masks, 3, (mask_side, mask_side)),
    }
    counts = {name: len(value) for name, value in found.items() if value is not None}
    if not counts or not all(counts.values()):
        raise SammiError("no prompt: give points, boxes or masks")
    if len(set(counts.values())) > 1:
        raise SammiError(
            f"prompts of different numbers, {counts}: a prompt may have points, a box and a mask, "
            "but then each has them"
        )
    count = next(iter(counts.values()))
    xy, corners = found["points"], found["boxes"]
    if xy is None and labels is not None:
        raise SammiError("labels belong to points: give points as well")
    _check_inside(xy, image.size)
    if corners is not None and (corners[:, 2:] <= corners[:, :2]).any():
        raise SammiError("a box has no area: give x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    given = None if xy is None else _labels(labels, xy.shape[:2])
    to_input = lambda x: np.asarray(to_input_coordinates(jnp.asarray(x), image.size, side))  # noqa: E731
    return Prompts(
        None if xy is None else to_input(xy),
        given,
        None if corners is None else to_input(corners.reshape(-1, 2, 2)).reshape(-1, 4),
        found["masks"],
        count,
    )


def _array(what: str, value: Any, rank: int, tail: tuple[int | None, ...]) -> NpArray | None:
    """As float32 of that rank; one prompt may come without the leading axis."""
    if value is None:
        return None
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise SammiError(f"{what}: give numbers, all of one shape") from error
    array = array[None] if array.ndim == rank - 1 else array
    fits = array.ndim == rank and all(
        want in (None, have) for want, have in zip(tail, array.shape[-len(tail) :], strict=True)
    )
    if not fits or not np.isfinite(array).all():
        shape = ", ".join("p" if side is None else str(side) for side in tail)
        raise SammiError(f"{what} {np.shape(value)}: give finite numbers [{shape}] or [k, {shape}]")
    return array


def _labels(labels: Any, shape: tuple[int, ...]) -> Int[NpArray, "k p"]:
    if labels is None:
        return np.ones(shape, np.int32)
    try:
        array = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise SammiError("point labels: give as many for each object") from error
    array = array[None] if array.ndim == 1 else array
    if array.shape != shape or not np.isin(array, (0, 1)).all():
        raise SammiError(
            f"point labels {np.shape(labels)}: give 1 (on the object) or 0 (off it) for each of "
            f"the points {list(shape)}"
        )
    return array.astype(np.int32)


def _check_inside(points: NpArray | None, size: tuple[int, int]) -> None:
    if points is None:
        return
    outside = (points < 0) | (points >= np.array([size[1], size[0]]))
    if outside.any():
        x, y = points[outside.any(axis=-1)][0]
        raise SammiError(
            f"the point ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels; "
            "points are (x, y), counted from the top left"
        )


def mask_prompt(
    mask: Bool[NpArray, "h w"], size: tuple[int, int], side: int, mask_side: int
) -> Float[NpArray, "m m"]:
    """A mask of an image as a prompt: logits of 10 inside it and -10 elsewhere.

    Args:
        mask: at the image's pixels.
        size: (height, width) of the image.
        side: of SAM's input.
        mask_side: of mask prompts.

    Raises:
        SammiError: a mask of another size, or without a pixel.
    """
    if mask.shape != tuple(size) or not mask.any():
        raise SammiError(
            f"mask of {mask.shape[1]} x {mask.shape[0]} pixels: give one of the image's "
            f"{size[1]} x {size[0]}, not zero inside the object"
        )
    height, width = (max(1, round(s * mask_side / side)) for s in resized_shape(*size, side))
    shares = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (width, height), Image.Resampling.BOX
    )
    prompt = np.full((mask_side, mask_side), -_SURE, np.float32)
    prompt[:height, :width] = np.where(np.asarray(shares) >= 128, _SURE, -_SURE)
    return prompt


def grid(num_points: int, size: tuple[int, int]) -> Float[NpArray, "n 2"]:
    """The centers of ``num_points x num_points`` equal parts of an image, (x, y) in pixels."""
    centers = (np.arange(num_points) + 0.5) / num_points
    x, y = np.meshgrid(centers * size[1], centers * size[0])
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)


@dataclass(frozen=True)
class Frame:
    """How SAM's mask logits come to the pixels of an image: two matrices.

    Attributes:
        rows: float32 ``[h, m]`` and
        columns: float32 ``[w, m]``, zero beyond the image, whose sides are padded.
        inside: bool ``[h, w]``.
    """

    rows: NpArray
    columns: NpArray
    inside: NpArray


def make_frame(size: tuple[int, int], side: int, mask_side: int) -> Frame:
    """As `ops.sam_image.postprocess`: bilinear to the input, cropped, bilinear to the image."""
    valid = resized_shape(*size, side)
    padded = [-(-length // _SIDE_BUCKET) * _SIDE_BUCKET for length in size]
    matrices = []
    for axis in (0, 1):
        frame = resize_matrix(mask_side, side)[: valid[axis]].astype(np.float64)
        matrix = np.zeros((padded[axis], mask_side), np.float32)
        matrix[: size[axis]] = resize_matrix(valid[axis], size[axis]) @ frame
        matrices.append(matrix)
    inside = np.zeros(padded, bool)
    inside[: size[0], : size[1]] = True
    return Frame(matrices[0], matrices[1], inside)


@jax.jit
def measure(
    logits: Float[Array, "n m m"], rows: Array, columns: Array, inside: Array
) -> tuple[Float[Array, " n"], Int[Array, "n 4"]]:
    """Stability and box of each mask at the image's pixels, one mask in memory at a time."""

    def one(logits: Array) -> tuple[Array, Array]:
        values = jnp.where(inside, rows @ logits @ columns.T, -jnp.inf)
        strict = jnp.sum(values > STABILITY_OFFSET)
        loose = jnp.sum(values > -STABILITY_OFFSET)
        stability = jnp.where(loose > 0, strict / jnp.maximum(loose, 1), 0.0)
        mask = values > 0
        return stability, jnp.concatenate([_ends(mask.any(axis=0)), _ends(mask.any(axis=1))])

    stability, ends = jax.lax.map(one, logits)
    return stability, ends[:, jnp.array([0, 2, 1, 3])]


def _ends(occupied: Bool[Array, " n"]) -> Int[Array, "2"]:
    """First and last place that is occupied; zeros where none is."""
    last = occupied.shape[0] - 1 - jnp.argmax(occupied[::-1])
    return jnp.where(occupied.any(), jnp.stack([jnp.argmax(occupied), last]), 0)


def on_image(
    logits: Float[NpArray, "n m m"], frame: Frame, size: tuple[int, int]
) -> Bool[NpArray, "n h w"]:
    """The masks at the image's pixels."""
    rows, columns = frame.rows[: size[0]], frame.columns[: size[1]]
    masks = np.zeros((len(logits), *size), bool)
    for mask, values in zip(masks, logits, strict=True):
        mask[:] = rows @ values @ columns.T > 0
    return masks


@partial(jax.jit, static_argnames="max_overlap")
def suppress(
    boxes: Float[Array, "n 4"], scores: Float[Array, " n"], *, max_overlap: float
) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    """Greedy non-maximum suppression of boxes by their IoU.

    Args:
        boxes: x0, y0, x1, y1.
        scores: the best comes first; ``-inf`` for a box that pads the axis.
        max_overlap: IoU with a better box above which a box goes.

    Returns:
        The boxes' indices, best first, and which of these stay.
    """
    order = jnp.argsort(-scores, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    corner = jnp.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = jnp.maximum(corner - jnp.maximum(boxes[:, None, :2], boxes[None, :, :2]), 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area[:, None] + area[None] - shared
    overlap = jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0.0)

    def step(index: Array, keep: Array) -> Array:
        worse = jnp.arange(keep.shape[0]) > index
        return keep & ~(worse & keep[index] & (overlap[index] > max_overlap))

    keep = jax.lax.fori_loop(0, boxes.shape[0], step, jnp.isfinite(scores[order]))
    return order, keep
