"""The arrays that the models take, made of decoded images on the host."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from sammi_jax.config.model import SegmenterConfig, view_layout
from sammi_jax.errors import SammiError
from sammi_jax.models.proposals import MASK_SCALE
from sammi_jax.models.smoothing import ORDINARY
from sammi_jax.ops.clip_image import CLIP_MEAN
from sammi_jax.ops.resize import between_rows, bilinear_taps
from sammi_jax.ops.sam_image import resized_shape
from sammi_jax.typing import Bool, NpArray, UInt8

# bool [1, n, G, G], bool [1, n] and float32 [1, n]
CanvasMasks = tuple[NpArray, NpArray, NpArray]

PAD_MULTIPLE = 32  # plain inference pads to a multiple of it (docs/catseg.md part 0, step 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterInput:
    """One batch for the segmenter; shapes depend on the configuration only."""

    canvas: Any  # [b, O, O, 3] float32 RGB 0..255: the windows are cut from it
    overview: Any  # [b, C, C, 3] float32 RGB 0..255: the global view; None for a single view
    # Of a SAM-MI without given masks, else None.
    sam_image: Any  # [b, S, S, 3] uint8 RGB, zero padded
    sam_size: Any  # [b, 2] float32 (height, width) inside the padding
    # Masks from elsewhere in the place of SAM's, else None.
    masks: Any = None  # [b, n, G, G] bool on the canvas, `MASK_SCALE` pixels a cell
    mask_valid: Any = None  # [b, n] bool
    mask_quality: Any = None  # [b, n] float32: the IoU with a true region that is expected of them


def _resample(image: NpArray, side: int, padded: tuple[int, int] | None = None) -> NpArray:
    """Bilinear without antialiasing to a square, as torch's ``interpolate``; float32 0..255.

    Only the pixels that are used are read: a large image in floats would not fit.

    Args:
        image: ``[h, w, 3]``.
        side: of the square.
        padded: (height, width) that the image is padded to with CLIP's mean color; None: its own.
    """
    height, width = padded or image.shape[:2]
    rows, columns = bilinear_taps(height, side, side), bilinear_taps(width, side, side)
    wide = between_rows(image, *rows, outside=CLIP_MEAN)
    return np.ascontiguousarray(
        between_rows(wide.swapaxes(0, 1), *columns, outside=CLIP_MEAN).swapaxes(0, 1)
    )


def segmenter_input(
    image: UInt8[NpArray, "h w 3"],
    config: SegmenterConfig,
    given: CanvasMasks | None = None,
) -> SegmenterInput:
    """The arrays of one RGB image, each with a leading batch axis of one.

    With windows the image is squashed to the canvas and, as one more view, to the crop's side.
    Without, it is padded to a multiple of 32 with the mean color and squashed to CLIP's side.

    Args:
        image: the pixels.
        config: of the model.
        given: from `canvas_masks`, in the place of SAM's masks.
    """
    if config.sliding is not None:
        canvas = _resample(image, config.sliding.output_size)
        overview = _resample(image, config.crop_size)[None]
    else:
        height, width = (-(-length // PAD_MULTIPLE) * PAD_MULTIPLE for length in image.shape[:2])
        canvas, overview = _resample(image, config.clip_size, (height, width)), None
    if given is not None:
        return SegmenterInput(canvas[None], overview, None, None, *given)
    if config.masks is None:
        return SegmenterInput(canvas[None], overview, None, None)
    sam_image, sam_size = sam_input(image, config.masks.sam.image_size)
    return SegmenterInput(canvas[None], overview, sam_image[None], sam_size[None])


def canvas_masks(
    masks: Bool[NpArray, "..."],
    size: tuple[int, ...],
    config: SegmenterConfig,
    num_slots: int,
    quality: NpArray | None = None,
) -> CanvasMasks:
    """Masks of an image on the canvas, which slots hold one, and their quality.

    A pixel of the canvas is in a mask if at least half of it is.

    Args:
        masks: of the image, ``[n, height, width]``.
        size: (height, width) of the image.
        config: of a SAM-MI.
        num_slots: how many masks the arrays hold.
        quality: the IoU with a true region that is expected of each mask, in [0, 1]; None: not
            known, which counts as ordinary.

    Raises:
        SammiError: masks of another size than the image, more than ``num_slots``, qualities that do
            not belong to them, or a CAT-Seg.
    """
    if config.masks is None:
        raise SammiError("masks: this model is a CAT-Seg, which takes none; give a SAM-MI")
    if masks.ndim != 3 or masks.shape[1:] != tuple(size):
        raise SammiError(
            f"masks {masks.shape}: give [n, height, width] of the image's {size[0]} x {size[1]} "
            "pixels"
        )
    if len(masks) > num_slots:
        raise SammiError(f"{len(masks)} masks, but there is room for {num_slots}")
    side = MASK_SCALE * view_layout(config).canvas
    out = np.zeros((1, num_slots, side, side), bool)
    for slot, mask in zip(out[0], masks, strict=False):
        shares = Image.fromarray(mask.astype(np.uint8) * 255)
        slot[:] = np.asarray(shares.resize((side, side), Image.Resampling.BOX)) >= 128
    expected = np.full((1, num_slots), ORDINARY, np.float32)
    if quality is not None:
        if quality.shape != (len(masks),) or not ((quality >= 0) & (quality <= 1)).all():
            raise SammiError(
                f"mask quality {quality.shape}: give one number in 0..1 for each of the "
                f"{len(masks)} masks"
            )
        expected[0, : len(masks)] = quality
    return out, np.any(out, axis=(-2, -1), keepdims=False), expected


def sam_input(image: NpArray, side: int) -> tuple[NpArray, NpArray]:
    """SAM's input: longest side ``side`` (antialiased bilinear), zero padding right and below.

    Returns:
        uint8 ``[side, side, 3]`` and the float32 (height, width) of the image inside it.
    """
    height, width = resized_shape(image.shape[0], image.shape[1], side)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.zeros((side, side, 3), np.uint8)
    padded[:height, :width] = np.asarray(resized)
    return padded, np.array([height, width], np.float32)


def stack_inputs(inputs: list[SegmenterInput]) -> SegmenterInput:
    """One batch of several images' inputs."""
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *inputs)
