"""Augmentation on the host: CAT-Seg's random crop with mirroring, or the whole image, resized.

Source of the crop: cvlab-kaist/CAT-Seg@6d3a188 configs/config.yaml and detectron2's transforms;
docs/data.md. Colors are jittered on the device (`sammi_jax.ops.color`).
"""

from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from PIL import Image

from sammi_jax.data.checks import check_label
from sammi_jax.images import crop_square, resize_short_side
from sammi_jax.typing import NpArray

PAD_VALUE = 128  # of the pixels of a crop that lie outside the image


@dataclass(frozen=True)
class CheckLabel(grain.transforms.Map):
    """Stops a training whose labels do not fit (`sammi_jax.data.checks`); changes nothing."""

    dataset: str
    num_classes: int
    ignore_label: int

    def map(  # pyright: ignore[reportIncompatibleMethodOverride]  (Grain says None)
        self, element: dict[str, Any]
    ) -> dict[str, Any]:
        """The example."""
        name = f"{self.dataset}: {element['file_name']}"
        label, image = element["label"], element["image"]
        check_label(label, image, self.num_classes, self.ignore_label, name)
        return element


@dataclass(frozen=True)
class TrainCrop(grain.transforms.RandomMap):
    """Short side to ``size``, then a random square of that side, mirrored half of the time.

    Labels become int32. Outside the image they are ``ignore_label``.
    """

    size: int
    ignore_label: int

    def random_map(  # pyright: ignore[reportIncompatibleMethodOverride]  (Grain says None)
        self, element: dict[str, NpArray], rng: np.random.Generator
    ) -> dict[str, NpArray]:
        """``{"image": uint8 [s, s, 3], "label": int32 [s, s]}`` of an example."""
        image = resize_short_side(element["image"], self.size)
        height, width = image.shape[:2]
        label = _resize_labels(element["label"], (height, width))
        top, left = (int(rng.integers(max(side - self.size, 0) + 1)) for side in (height, width))
        image = crop_square(image, top, left, self.size, PAD_VALUE)
        label = crop_square(label, top, left, self.size, self.ignore_label)
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        return {"image": np.ascontiguousarray(image), "label": np.ascontiguousarray(label)}


@dataclass(frozen=True)
class WholeImage(grain.transforms.Map):
    """The whole image resized to a square of side ``size``, whatever its shape; not random."""

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
    """Pillow's nearest neighbor, int32; ``size`` is (height, width)."""
    image = Image.fromarray(label.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
