"""Training crops of photographs: CAT-Seg's random crop and mirror, or the whole image.

Source of the crop: cvlab-kaist/CAT-Seg@6d3a188 configs/config.yaml and detectron2's transforms;
docs/data.md. Colors are changed on the device (`sammi_jax.ops.color`), where it costs nothing.
"""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from PIL import Image

from sammi_jax.images import resize_short_side
from sammi_jax.typing import NpArray

PAD_VALUE = 128  # of pixels beyond an image that is smaller than the crop
MAX_LONG_SIDE = 2560


@dataclass(frozen=True)
class TrainCrop(grain.transforms.RandomMap):
    """Short side to ``size``, a random square of that side, mirrored half of the time.

    Labels are int32 afterwards, and ``ignore_label`` where the crop reaches beyond the image.
    """

    size: int
    ignore_label: int

    def random_map(  # pyright: ignore[reportIncompatibleMethodOverride]  (Grain says None)
        self, element: dict[str, NpArray], rng: np.random.Generator
    ) -> dict[str, NpArray]:
        """``{"image": uint8 [s, s, 3], "label": int32 [s, s]}`` of an example."""
        image = resize_short_side(element["image"], self.size, MAX_LONG_SIDE)
        height, width = image.shape[:2]
        label = _resize_labels(element["label"], (height, width))
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in (height, width))
        image = _crop(image, top, left, self.size, PAD_VALUE)
        label = _crop(label, top, left, self.size, self.ignore_label)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        return {"image": np.ascontiguousarray(image), "label": np.ascontiguousarray(label)}


@dataclass(frozen=True)
class WholeImage(grain.transforms.Map):
    """The whole image squashed to a square of side ``size``: nothing is random."""

    size: int

    def map(  # pyright: ignore[reportIncompatibleMethodOverride]  (Grain says None)
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
        """The example with ``image`` uint8 [s, s, 3] and ``label`` int32 [s, s]."""
        size = (self.size, self.size)
        image = Image.fromarray(element["image"]).resize(size, Image.Resampling.BILINEAR)
        label = _resize_labels(element["label"], size)
        return {**element, "image": np.asarray(image), "label": label}


def _resize_labels(label: NpArray, size: tuple[int, int]) -> NpArray:
    """Nearest neighbor, as Pillow defines it."""
    image = Image.fromarray(label.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))


def _crop(array: NpArray, top: int, left: int, side: int, fill: int) -> NpArray:
    out = np.full((side, side, *array.shape[2:]), fill, array.dtype)
    part = array[top : top + side, left : left + side]
    out[: part.shape[0], : part.shape[1]] = part
    return out
