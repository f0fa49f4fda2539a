"""From a pair of source files to stored examples: labels mapped, images tiled or resized."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from sammi_jax.data.prepare.labels import READERS, LabelMap
from sammi_jax.data.prepare.layout import Layout
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.prepare.pixels import (
    png_bytes,
    resize_linear,
    resize_nearest,
    tiles,
)
from sammi_jax.data.prepare.sentinel import read_sentinel
from sammi_jax.errors import SammiError
from sammi_jax.images import FORMATS, load_image, short_side_shape
from sammi_jax.typing import NpArray

_KEPT_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True)
class Example:
    """What one record holds.

    Attributes:
        file_name: unique within its split.
        image: a JPEG or PNG file, byte for byte the owner's unless the set is tiled or resized.
        label: train ids, uint8 or uint16 ``[H, W]``.
    """

    file_name: str
    image: bytes
    label: NpArray


def make_examples(pair: Pair, layout: Layout, label_map: LabelMap) -> Iterator[Example]:
    """The examples of one pair: one, several tiles, or none where every pixel is ignored.

    Raises:
        SammiError: a file that cannot be read, or a label value that the set does not know.
    """
    label = label_map(READERS[layout.kind](pair, layout.channel), str(pair.labels[0]))
    if layout.drop_ignored and (label == label_map.ignore_index).all():
        return
    if layout.tile is None and layout.short_side is None:
        data, suffix = _file_bytes(pair.image, layout.cut_short)
        yield Example(pair.key + suffix, data, label)
        return
    image = read_sentinel(pair.image) if layout.sentinel else load_image(pair.image)
    if image.shape[:2] != label.shape:
        raise SammiError(
            f"{pair.image}: {image.shape[0]} x {image.shape[1]} pixels, its label has "
            f"{label.shape[0]} x {label.shape[1]}; copy both again"
        )
    if layout.short_side is not None:
        yield _resized(pair, image, label, layout.short_side)
    else:
        yield from _tiled(pair, image, label, layout, label_map.ignore_index)


def _resized(pair: Pair, image: NpArray, label: NpArray, short: int) -> Example:
    if min(label.shape) > short:
        shape = short_side_shape(label.shape[0], label.shape[1], short, long=math.inf)
        image, label = resize_linear(image, *shape), resize_nearest(label, *shape)
        return Example(f"{pair.key}.png", png_bytes(image), label)
    data, suffix = _file_bytes(pair.image, cut_short=False)
    return Example(pair.key + suffix, data, label)


def _tiled(
    pair: Pair, image: NpArray, label: NpArray, layout: Layout, ignore_index: int
) -> Iterator[Example]:
    """Squares in reading order; beyond the border the image is black and the label ignored."""
    side = layout.tile or 0
    both = zip(tiles(image, side, 0), tiles(label, side, ignore_index), strict=True)
    for number, (image_tile, label_tile) in enumerate(both):
        yield Example(f"{pair.key}_{number}.png", png_bytes(image_tile), label_tile)


def _file_bytes(path: Path, cut_short: bool) -> tuple[bytes, str]:
    """The bytes of a complete JPEG or PNG file, else a PNG of its pixels; and the suffix."""
    data = path.read_bytes()
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
        image.load()
        if image.format in _KEPT_FORMATS:
            return data, ".jpg" if image.format == "JPEG" else ".png"
    except Exception:  # `load_image` says what is wrong with the file
        if cut_short:
            with _tolerant():
                return png_bytes(load_image(path)), ".png"
    return png_bytes(load_image(path)), ".png"  # raises an error if it cannot be read


@contextmanager
def _tolerant() -> Iterator[None]:
    """Let Pillow decode files that end early; it fills in the missing pixels."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def label_bytes(example: Example) -> bytes:
    """The label as a gray PNG of 8 or 16 bits."""
    return png_bytes(np.ascontiguousarray(example.label))
