"""From label files of every format to raw values, and from raw values to train ids.

`READERS` has one function for each format: from a `Pair` to int ``[H, W]``. `LabelMap` then maps
values or colors to train ids.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sammi_jax.data.prepare.mat_file import read_matrix
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.vocabulary import Vocabulary
from sammi_jax.errors import SammiError, listed, reading
from sammi_jax.files import read_json
from sammi_jax.images import FORMATS
from sammi_jax.ops.rle import decode_rle
from sammi_jax.typing import NpArray

_UNKNOWN = -1
_HALF, _WHITE = 128, 255
_COPY = "copy it again"
_MOST_PIXELS = 2**28  # of a label that a file describes in other ways than an image


class LabelMap:
    """Maps raw values, or packed colors, to the train ids of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary):
        self.ignore_index = vocabulary.ignore_index
        self._name = vocabulary.name
        table = dict(vocabulary.train_id_by_value)
        colors = np.array(vocabulary.rgb_by_class, np.uint8).reshape(-1, 3)
        table |= {int(packed): index for index, packed in enumerate(pack_rgb(colors))}
        self._colors = bool(vocabulary.rgb_by_class)
        self._keys = np.array(sorted(table), np.int64)
        self._train_ids = np.array([table[int(key)] for key in self._keys], np.int32)
        self._other = _UNKNOWN if vocabulary.other_values is None else vocabulary.other_values
        self._dtype = vocabulary.label_dtype

    def __call__(self, raw: NpArray, where: str) -> NpArray:
        """Train ids, uint8 or uint16 ``[H, W]``.

        Args:
            raw: int ``[H, W]``: values, or colors of `pack_rgb`.
            where: the file, named in errors.

        Raises:
            SammiError: a value that the mapping lacks.
        """
        if raw.ndim != 2:
            raise SammiError(f"{where}: a label of shape {raw.shape}, not height x width")
        label = self._look_up(raw)
        unknown = label == _UNKNOWN
        if unknown.any():
            raise self._unknown_values(raw[unknown], where)
        return label.astype(self._dtype)

    def _look_up(self, raw: NpArray) -> NpArray:
        if self._colors:  # too many for a table
            at = np.minimum(np.searchsorted(self._keys, raw), len(self._keys) - 1)
            return np.where(self._keys[at] == raw, self._train_ids[at], self._other)
        # The last entry stands for every larger value.
        table = np.full(int(self._keys[-1]) + 2, self._other, np.int32)
        table[self._keys] = self._train_ids
        known = np.iinfo(raw.dtype)  # NumPy refuses bounds that the values cannot have
        return table[np.clip(raw, max(-1, known.min), min(len(table) - 1, known.max))]

    def _unknown_values(self, unknown: NpArray, where: str) -> SammiError:
        values, counts = np.unique(unknown, return_counts=True)
        shown = [self._show(int(value)) for value in values]
        what = "colors" if self._colors else "values"
        return SammiError(
            f"{where}: {what} that {self._name} does not know: {listed(shown)} "
            f"({counts.sum()} pixels); check that it is the owner's label file of this set"
        )

    def _show(self, value: int) -> str:
        return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if self._colors else str(value)


def pack_rgb(colors: NpArray) -> NpArray:
    """One number for each color of uint8 ``[..., 3]``: int64 ``[...]``."""
    wide = colors.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def open_label(path: Path, load: bool = True) -> Image.Image:
    """Open a label file with Pillow.

    Args:
        path: of the file.
        load: decode the pixels; otherwise only the head of the file is read.

    Raises:
        SammiError: missing, cut short, or not an image.
    """
    if not path.is_file():
        raise SammiError(f"{path}: no such file; copy it from the owner's archive")
    with reading(path, _COPY, "cannot be decoded"), path.open("rb") as file:
        image = Image.open(file, formats=FORMATS)
        if load:
            image.load()
        return image


def read_index(path: Path) -> NpArray:
    """Values of a gray, palette (its indices), 1-bit or 16-bit image, int32 ``[H, W]``."""
    image = open_label(path)
    if 0 in image.size:
        raise SammiError(f"{path}: the image has no pixels; {_COPY}")
    if image.mode == "F" or len(image.getbands()) > 1:
        raise SammiError(
            f"{path}: an image of mode {image.mode} where one with a class number for each pixel "
            "was expected (gray or palette PNG, 16-bit PNG or TIFF)"
        )
    with reading(path, _COPY, "cannot be decoded"):
        return np.asarray(image).astype(np.int32)


def _converted(path: Path, *modes: str) -> NpArray:
    """The pixels of a label file, converted from mode to mode."""
    image = open_label(path)
    with reading(path, _COPY, "cannot be decoded"):
        for mode in modes:
            image = image.convert(mode)
        return np.asarray(image)


def _rgb(path: Path) -> NpArray:
    return _converted(path, "RGB")


def _index(pair: Pair, _: int) -> NpArray:
    return read_index(pair.labels[0])


def _colors(pair: Pair, _: int) -> NpArray:
    return pack_rgb(_rgb(pair.labels[0]))


def _color_halves(pair: Pair, _: int) -> NpArray:
    """Potsdam: some of its masks have shades, so each channel counts as 0 or 255."""
    return pack_rgb((_rgb(pair.labels[0]) > _HALF) * np.uint8(_WHITE))


def _luma(pair: Pair, _: int) -> NpArray:
    """UAVid: MESS maps the gray value of each color."""
    return _converted(pair.labels[0], "RGB", "L")


def _ade_full(pair: Pair, _: int) -> NpArray:
    """ADE20K in full: red holds the class's hundreds (of 256) times ten, green the rest."""
    colors = _rgb(pair.labels[0]).astype(np.int32)
    return colors[..., 0] // 10 * 256 + colors[..., 1]


def _full_white(pair: Pair, _: int) -> NpArray:
    """1 where the first channel is 255; MESS rounds v / 255 down."""
    values = _converted(pair.labels[0]).astype(np.int32)
    return (values if values.ndim == 2 else values[..., 0]) // _WHITE


def _species(pair: Pair, _: int) -> NpArray:
    """CUB: the bird is where most annotators saw it; its folder, "012.Name", is the class."""
    values = _converted(pair.labels[0], "L")
    return (values > _HALF) * int(pair.labels[0].parent.name.partition(".")[0])


def _persons(pair: Pair, _: int) -> NpArray:
    """MHP: one file a person; the largest value wins where they overlap."""
    persons = [read_index(path) for path in pair.labels]
    with reading(pair.labels[0], _COPY, "does not go with the others of its image"):
        return np.max(np.stack(persons), axis=0)


def _dark_zurich(pair: Pair, _: int) -> NpArray:
    """Cityscapes' ids, 255 where the second file says "invalid"."""
    path = pair.labels[0]
    values = read_index(path)
    invalid = read_index(path.with_name(path.name.replace("labelIds", "invGray")))
    if values.shape != invalid.shape:
        raise SammiError(f"{path}: has another size than its invGray file; {_COPY}")
    return np.where(invalid == _WHITE, _WHITE, values)


def _mat(pair: Pair, _: int) -> NpArray:
    """MATLAB's ``LabelMap``."""
    return read_matrix(pair.labels[0], "LabelMap")


def _check_pixels(shape: Sequence[int], where: object) -> None:
    if math.prod(shape) > _MOST_PIXELS:
        raise SammiError(f"{where}: declares {' x '.join(map(str, shape))} pixels; {_COPY}")


def _stack(pair: Pair, channel: int) -> NpArray:
    """PAXRay: one mask of the stack that the index names for the image."""
    with reading(pair.labels[0], _COPY):
        path = pair.labels[0].parent / _paxray_targets(pair.labels[0])[pair.key]
    with reading(path, _COPY):
        # Mapped, a file gives no more than it holds, whatever its head declares.
        label = np.lib.format.open_memmap(path, mode="r")[channel]
        if label.ndim != 2 or label.dtype.kind not in "iub":
            raise SammiError(f"{path}: holds no stack of masks; {_COPY}")
        return label.astype(np.int32)


@lru_cache(maxsize=1)
def _paxray_targets(index: Path) -> dict[str, str]:
    return {Path(entry["image"]).stem: entry["target"] for entry in read_json(index)["test"]}


def _coco_rle(pair: Pair, _: int) -> NpArray:
    """PASCAL-Context: segments painted in the order of the file; 0 where there is no segment."""
    where = f"{pair.labels[0]}, image {pair.key}"
    with reading(where, _COPY):
        height, width, segments = _context_segments(pair.labels[0])[pair.key]
        _check_pixels((height, width), where)
        label = np.zeros((height, width), np.int32)
        for segment in segments:
            label[decode_rle(segment["segmentation"], where)] = segment["category_id"]
        return label


@lru_cache(maxsize=1)
def _context_segments(index: Path) -> dict[str, tuple[int, int, list[dict[str, Any]]]]:
    content = read_json(index)
    segments: dict[Any, list[dict[str, Any]]] = {}
    for segment in content["annos_segmentation"]:
        segments.setdefault(segment["image_id"], []).append(segment)
    return {
        Path(image["file_name"]).stem: (
            image["height"],
            image["width"],
            segments.get(image["image_id"], []),
        )
        for image in content["images"]
    }


READERS: dict[str, Callable[[Pair, int], NpArray]] = {
    "index": _index,
    "rgb": _colors,
    "rgb_halves": _color_halves,
    "luma": _luma,
    "ade_full": _ade_full,
    "full_white": _full_white,
    "species": _species,
    "persons": _persons,
    "dark_zurich": _dark_zurich,
    "mat": _mat,
    "stack": _stack,
    "coco_rle": _coco_rle,
}
