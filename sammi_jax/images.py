"""Image files and arrays on the host: decoding, resizing and cropping.

Nothing here touches a device. Every image becomes uint8 RGB ``[H, W, 3]`` first.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sammi_jax.errors import SammiError
from sammi_jax.typing import NpArray

SHORT_SIDE, LONG_SIDE = 640, 2560  # CAT-Seg's loader (docs/catseg.md part h)


def load_image(source: str | Path | Image.Image | NpArray) -> NpArray:
    """Read an image as uint8 RGB ``[H, W, 3]``.

    Gray, palette, RGBA (alpha is dropped), CMYK and 16-bit images are converted; the EXIF
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
    """16-bit (or wider) gray to 8-bit RGB: 65535 becomes 255."""
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


def resize_short_side(image: NpArray, short: int = SHORT_SIDE) -> NpArray:
    """Bilinear (antialiased) resize of uint8 ``[H, W, 3]`` to `short_side_shape`.

    This is detectron2's ResizeShortestEdge, which CAT-Seg uses.
    """
    height, width = short_side_shape(image.shape[0], image.shape[1], short)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def short_side_shape(
    height: int, width: int, short: int, long: float = LONG_SIDE
) -> tuple[int, int]:
    """(height, width) scaled so that the short side is ``short`` and the long at most ``long``."""
    scale = short / min(height, width)
    scale *= min(1.0, long / (max(height, width) * scale))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def crop_square(array: NpArray, top: int, left: int, side: int, fill: int) -> NpArray:
    """The square ``[side, side, ...]`` at (top, left); ``fill`` where it leaves the array."""
    square = np.full((side, side, *array.shape[2:]), fill, array.dtype)
    part = array[top : top + side, left : left + side]
    square[: part.shape[0], : part.shape[1]] = part
    return square
