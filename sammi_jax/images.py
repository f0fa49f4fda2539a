"""Image files and arrays on the host: decoding, resizing, and the inputs of the models.

Nothing here touches a device. Every picture becomes uint8 RGB ``[H, W, 3]`` first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sammi_jax.config import SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.ops.sam_image import resized_shape
from sammi_jax.typing import NpArray

CLIP_MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)  # 0..255, RGB
CLIP_STD = np.array([68.5005327, 66.6321579, 70.3231630], np.float32)
SHORT_SIDE, LONG_SIDE = 640, 2560  # CAT-Seg's loader (docs/catseg.md part h)
_PAD_MULTIPLE = 32  # plain inference pads to a multiple of it (docs/catseg.md part 0, step 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterInput:
    """One batch for the segmenter; shapes depend on the configuration only."""

    canvas: Any  # [b, O, O, 3] float32 RGB 0..255: the windows are cut from it
    overview: Any  # [b, C, C, 3] float32 RGB 0..255: the global view; None for a single view
    sam_image: Any  # [b, S, S, 3] uint8 RGB, zero padded; None for CAT-Seg
    sam_size: Any  # [b, 2] float32 (height, width) inside the padding; None for CAT-Seg


def load_image(source: str | Path | Image.Image | NpArray) -> NpArray:
    """Read a picture as uint8 RGB ``[H, W, 3]``.

    Grey, palette, RGBA (alpha is dropped), CMYK and 16-bit pictures are converted; the EXIF
    orientation is applied.

    Args:
        source: a path, a PIL image, or a uint8 array ``[H, W, 3]`` or ``[H, W]``.

    Raises:
        SammiError: not readable, not an image, or without pixels.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    name = str(source) if isinstance(source, str | Path) else "the image"
    try:
        image = Image.open(source) if isinstance(source, str | Path) else source
        if 0 in image.size:
            raise SammiError(f"{name}: the image has no pixels; give one of at least 1 x 1")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_wide(np.asarray(image))
        return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise SammiError(f"{name}: no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise SammiError(
            f"{name}: not an image that can be read; give a PNG, JPEG, TIFF, BMP or WebP file"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SammiError(f"{name}: cannot be decoded ({error}); export the image again") from error


def _from_wide(values: NpArray) -> NpArray:
    """16-bit (or wider) grey to 8-bit RGB: 65535 becomes 255."""
    values = np.clip(values.astype(np.float32) / 257.0, 0, 255)
    return np.repeat(np.round(values).astype(np.uint8)[..., None], 3, axis=-1)


def _check_array(array: NpArray) -> NpArray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise SammiError(
            f"image array {array.shape} {array.dtype}: give uint8 [H, W, 3] with at least one pixel"
        )
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=-1)
    if array.shape[-1] not in (3, 4):
        raise SammiError(f"image array {array.shape}: the last axis must hold 3 (RGB) channels")
    return np.ascontiguousarray(array[..., :3])


def resize_short_side(image: NpArray, short: int = SHORT_SIDE, long: int = LONG_SIDE) -> NpArray:
    """Bilinear (antialiased) resize so that the short side is ``short``, the long at most ``long``.

    This is detectron2's ResizeShortestEdge, which CAT-Seg's evaluation uses.
    """
    height, width = image.shape[:2]
    scale = short / min(height, width)
    scale *= min(1.0, long / (max(height, width) * scale))
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _resample(image: NpArray, side: int) -> NpArray:
    """Bilinear without antialiasing to a square, as torch's ``interpolate``; float32 0..255."""
    rows = resize_matrix(image.shape[0], side)
    columns = resize_matrix(image.shape[1], side)
    return np.einsum("oh,hwc,pw->opc", rows, image.astype(np.float32), columns, optimize=True)


def segmenter_input(image: NpArray, config: SegmenterConfig) -> SegmenterInput:
    """The arrays of one uint8 RGB image, each with a leading batch axis of one.

    With windows the image is squashed to the canvas and, as one more view, to the crop's side.
    Without, it is padded to a multiple of 32 with the mean colour and squashed to CLIP's side.
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
