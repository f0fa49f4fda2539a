"""Image files and arrays on the host: decoding, writing, resizing and cropping.

Nothing here touches a device. Every image becomes uint8 RGB ``[H, W, 3]`` first.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from sammi_jax.errors import SammiError, one_line
from sammi_jax.files import write_atomic
from sammi_jax.object_store import AnyPath
from sammi_jax.typing import NpArray, UInt8

_16_BITS = 65535
_ORIENTATION = 0x0112  # EXIF's tag; 1: upright
_STRIPE = 2**20  # pixels that are computed on at once where a whole image in floats would not fit
_START = 16  # bytes that tell what a file is
# What people hand over for an image, by its first bytes.
_KINDS = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (unpack it)"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
    (b"\x93NUMPY", "a NumPy array (pass it from Python: model.segment(np.load(file), ...))"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<svg", "an SVG drawing"),
    (b"<!DOCTYPE", "a web page, not the image it was downloaded for"),
    (b"<html", "a web page, not the image it was downloaded for"),
    (b"version https://", "a Git LFS pointer (run 'git lfs pull')"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"RIFF", "a RIFF file that is no WebP image"),
)
_BRANDS = {
    b"heic": "a HEIC photograph (export it as JPEG)",
    b"heix": "a HEIC photograph (export it as JPEG)",
    b"mif1": "a HEIF photograph (export it as JPEG)",
}
_DARK = 16  # of 255: an image whose values all lie below it was probably scaled wrongly
# Formats that Pillow decodes by itself: for others, such as EPS, it starts programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM") + (
    ("AVIF",) if features.check("avif") else ()
)
SHORT_SIDE, LONG_SIDE = 640, 2560  # CAT-Seg's loader (docs/catseg.md part h)


def load_image(source: Any, formats: tuple[str, ...] = FORMATS) -> UInt8[NpArray, "h w 3"]:
    """Read an image as uint8 RGB ``[H, W, 3]``.

    Gray, palette, RGBA (alpha is dropped) and CMYK images are converted, 16-bit and float ones
    scaled by their range; the EXIF orientation is applied.

    Args:
        source: a path, a PIL image, the bytes of an image file, an open file, or a uint8 array
            (NumPy's, JAX's, PyTorch's) ``[H, W, 3]`` or ``[H, W]``.
        formats: of files that are decoded, by Pillow's names.

    Raises:
        SammiError: not readable, not an image, without pixels, or of values in no known range.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    name = str(source) if isinstance(source, str | Path) else "the image"
    if isinstance(source, bytes | bytearray | memoryview):
        source = io.BytesIO(source)
    elif not isinstance(source, str | Path | Image.Image) and not hasattr(source, "read"):
        return _check_array(_as_array(source))
    try:
        if isinstance(source, Image.Image):
            return _pixels(source, name)
        with Image.open(source, formats=formats) as image:
            return _pixels(image, name)
    except FileNotFoundError as error:
        raise SammiError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise SammiError(f"{name}: is a folder; name the images in it") from error
    except PermissionError as error:
        raise SammiError(f"{name}: may not be read; check its permissions") from error
    except UnidentifiedImageError as error:
        raise SammiError(
            f"{name}: {_what_it_is(source)}; give a PNG, JPEG, TIFF, BMP or WebP file"
        ) from error
    except SammiError:
        raise
    except Exception as error:  # whatever Pillow's plugins and EXIF reader meet in a damaged file
        raise SammiError(
            f"{name}: cannot be decoded ({one_line(error)}); export the image again"
        ) from error


def write_image(path: AnyPath, image: Image.Image, format: str = "PNG") -> None:
    """Write an image file atomically.

    Raises:
        SammiError: the disk is full, read-only or broken.
    """
    content = io.BytesIO()  # Pillow itself does not notice that a disk has no room for a JPEG file
    image.save(content, format=format)
    write_atomic(path, content.getvalue())


def _pixels(image: Image.Image, name: str) -> NpArray:
    if 0 in image.size:
        raise SammiError(f"{name}: the image has no pixels; give one of at least 1 x 1")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(to_bytes(np.asarray(image), name)[..., None], 3, axis=-1)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def to_bytes(values: NpArray, name: str) -> NpArray:
    """Channels of more than 8 bits as uint8 of the same shape, scaled by their range.

    16 bits are those of a 16-bit file. Other integers and floats tell their range by the largest
    value: 0 to 1 (floats), 0 to 255, or 0 to 65535.

    Args:
        values: integers or floats.
        name: of the file, for messages.

    Raises:
        SammiError: values that no such range holds.
    """
    low, high = float(values.min()), float(values.max())
    is_float = values.dtype.kind == "f"
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > _16_BITS:
        raise SammiError(
            f"{name}: its values go from {low:g} to {high:g}; scale them to 0 to 1 (floats), 0 to "
            "255, or 0 to 65535"
        )
    if values.dtype.kind == "u" or high > 255:
        scale = 255 / _16_BITS
    else:
        scale = 255.0 if is_float and high <= 1 else 1.0
    if 0 < high * scale < _DARK:
        warnings.warn(
            f"{name}: its largest value, {high:g}, is nearly black among 0 to {255 / scale:g}; "
            "scale its values if it should not be",
            stacklevel=3,
        )
    return np.round(values.astype(np.float32) * np.float32(scale)).astype(np.uint8)


def _as_array(source: Any) -> NpArray:
    if hasattr(source, "__array__"):
        try:
            return np.asarray(source)
        except Exception as error:  # such as a tensor that lies on a GPU or has a gradient
            raise SammiError(
                f"the image, a {type(source).__name__}, is no array on the host "
                f"({one_line(error)}); give a uint8 NumPy array [H, W, 3]"
            ) from error
    raise SammiError(
        f"the image is a {type(source).__name__}; give a path, a PIL image, the bytes of an image "
        "file or a uint8 array [H, W, 3]"
    )


def _what_it_is(source: Any) -> str:
    """What a file that Pillow does not know begins with."""
    try:
        if isinstance(source, str | Path):
            with open(source, "rb") as file:
                start = file.read(_START)
        else:
            source.seek(0)
            start = source.read(_START)
    except (OSError, ValueError, AttributeError):
        return "is no image that can be read"
    if not start:
        return "is an empty file"
    kind = next((what for magic, what in _KINDS if start.startswith(magic)), None)
    if kind is None and start[4:8] == b"ftyp":
        kind = _BRANDS.get(start[8:12], "a video or HEIF file")
    return "is no image that can be read" if kind is None else f"is {kind}"


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


def stripes(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of an image of (height, width, ...) that together have about a million pixels."""
    step = max(1, _STRIPE // max(1, shape[1]))
    yield from (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def center_square(image: UInt8[NpArray, "h w 3"], side: int) -> UInt8[NpArray, "s s 3"]:
    """CLIP's own view of an image: bicubic with the short side ``side``, then the center square.

    As openai/CLIP clip/clip.py ``_transform``.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    height, width = int(side * height / short), int(side * width / short)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return crop_square(np.asarray(resized), top, left, side, 0)


def crop_square(array: NpArray, top: int, left: int, side: int, fill: int) -> NpArray:
    """The square ``[side, side, ...]`` at (top, left); ``fill`` where it leaves the array."""
    square = np.full((side, side, *array.shape[2:]), fill, array.dtype)
    part = array[top : top + side, left : left + side]
    square[: part.shape[0], : part.shape[1]] = part
    return square
