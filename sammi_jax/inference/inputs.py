"""The arrays that the models take, made of decoded images on the host."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from PIL import Image

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.ops.clip_image import CLIP_MEAN
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.ops.sam_image import resized_shape
from sammi_jax.typing import NpArray

_PAD_MULTIPLE = 32  # plain inference pads to a multiple of it (docs/catseg.md part 0, step 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterInput:
    """One batch for the segmenter; shapes depend on the configuration only."""

    canvas: Any  # [b, O, O, 3] float32 RGB 0..255: the windows are cut from it
    overview: Any  # [b, C, C, 3] float32 RGB 0..255: the global view; None for a single view
    sam_image: Any  # [b, S, S, 3] uint8 RGB, zero padded; None for CAT-Seg
    sam_size: Any  # [b, 2] float32 (height, width) inside the padding; None for CAT-Seg


def _resample(image: NpArray, side: int) -> NpArray:
    """Bilinear without antialiasing to a square, as torch's ``interpolate``; float32 0..255."""
    rows = resize_matrix(image.shape[0], side)
    columns = resize_matrix(image.shape[1], side)
    return np.einsum("oh,hwc,pw->opc", rows, image.astype(np.float32), columns, optimize=True)


def segmenter_input(image: NpArray, config: SegmenterConfig) -> SegmenterInput:
    """The arrays of one uint8 RGB image, each with a leading batch axis of one.

    With windows the image is squashed to the canvas and, as one more view, to the crop's side.
    Without, it is padded to a multiple of 32 with the mean color and squashed to CLIP's side.
    """
    if config.sliding is not None:
        canvas = _resample(image, config.sliding.output_size)
        overview = _resample(image, config.crop_size)[None]
    else:
        height, width = image.shape[:2]
        padded = np.broadcast_to(
            CLIP_MEAN,
            (
                -(-height // _PAD_MULTIPLE) * _PAD_MULTIPLE,
                -(-width // _PAD_MULTIPLE) * _PAD_MULTIPLE,
                3,
            ),
        ).copy()
        padded[:height, :width] = image
        canvas, overview = _resample(padded, config.clip_size), None
    if config.masks is None:
        return SegmenterInput(canvas[None], overview, None, None)
    sam_image, sam_size = sam_input(image, config.masks.sam.image_size)
    return SegmenterInput(canvas[None], overview, sam_image[None], sam_size[None])


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
