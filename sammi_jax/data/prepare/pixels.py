"""Images and label maps as bytes and arrays: PNG files, tiles, and OpenCV's two resizes."""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from sammi_jax.images import crop_square
from sammi_jax.typing import NpArray

_FIXED_BITS = 11  # OpenCV rounds its interpolation weights to 1/2048


def png_bytes(array: NpArray) -> bytes:
    """A PNG file of uint8 ``[H, W]`` or ``[H, W, 3]``, or of uint16 ``[H, W]``."""
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def label_from_png(data: bytes) -> NpArray:
    """The train ids of `png_bytes`: uint8 or uint16 ``[H, W]``."""
    label = np.asarray(Image.open(BytesIO(data), formats=("PNG",)))
    return label if label.dtype == np.uint8 else label.astype(np.uint16)


def tiles(array: NpArray, side: int, fill: int) -> Iterator[NpArray]:
    """Non-overlapping squares of ``side`` in reading order, filled with ``fill`` at the end."""
    height, width = array.shape[:2]
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield crop_square(array, top, left, side, fill)


def count_tiles(height: int, width: int, side: int) -> int:
    """How many `tiles` an image has."""
    return -(-height // side) * -(-width // side)


def resize_nearest(array: NpArray, height: int, width: int) -> NpArray:
    """OpenCV's INTER_NEAREST: pixel i is taken from floor(i * source / target)."""
    # The reciprocal of a quotient, as there: an exact fraction differs where it is an integer.
    rows = np.floor(np.arange(height) * (1 / (height / array.shape[0]))).astype(np.int64)
    columns = np.floor(np.arange(width) * (1 / (width / array.shape[1]))).astype(np.int64)
    rows, columns = np.minimum(rows, len(array) - 1), np.minimum(columns, array.shape[1] - 1)
    return array[rows[:, None], columns]


def resize_linear(image: NpArray, height: int, width: int) -> NpArray:
    """OpenCV's INTER_LINEAR on uint8 ``[H, W, C]``: half-pixel centers, no antialiasing.

    Equal to it in every bit: the same fixed-point arithmetic, rounded at the same places.
    """
    top, bottom, down = _axis(image.shape[0], height)
    left, right, along = _axis(image.shape[1], width)
    one = 1 << _FIXED_BITS
    wide = image.astype(np.int64)
    mixed = wide[:, left] * (one - along)[:, None] + wide[:, right] * along[:, None]
    mixed >>= 4
    upper = (mixed[top] * (one - down)[:, None, None]) >> 16
    lower = (mixed[bottom] * down[:, None, None]) >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _axis(source: int, target: int) -> tuple[NpArray, NpArray, NpArray]:
    """Both neighbors of each target pixel, and the fixed-point weight of the second."""
    center = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    low = np.floor(center).astype(np.int64)
    weight = np.rint((center - low.astype(np.float32)) * (1 << _FIXED_BITS)).astype(np.int64)
    weight[low < 0] = 0
    low = np.clip(low, 0, source - 1)
    return low, np.minimum(low + 1, source - 1), weight
