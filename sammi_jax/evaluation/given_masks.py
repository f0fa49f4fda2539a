"""Masks that an evaluation gives to the model in the place of SAM's: what are masks worth?"""

from typing import Any

import numpy as np
from scipy import ndimage

from sammi_jax.config.experiment import EvalConfig
from sammi_jax.config.model import SegmenterConfig
from sammi_jax.data.catalogue import Dataset
from sammi_jax.errors import SammiError
from sammi_jax.typing import Bool, Float, NpArray

# Slots by kind; of more regions in an image the largest are kept.
_NUM_SLOTS = {"none": 1, "true": 64, "parts": 256}
_NOISE_SIZE = 0.12  # scale of the noise's waves, as a share of the square root of a mask's area
_BISECTIONS = 12


class GivenMasks:
    """The masks of each example of a data set, by ``eval.masks`` and ``eval.mask_iou``.

    Attributes:
        num_slots: room for masks in the model's input.
        quality: of the given masks, which is known: ``mask_iou``, or 1.

    Raises:
        SammiError: the model takes no masks, the data set knows no regions, or ``mask_iou`` is no
            share or goes with masks that are not given.
    """

    def __init__(self, dataset: Dataset, model: SegmenterConfig, config: EvalConfig):
        self._kind, self._iou = config.masks, config.mask_iou
        self.quality = 1.0 if self._iou is None else self._iou
        self._regions: Any = getattr(dataset.source, "regions", None)
        if self._iou is not None and (
            self._kind not in ("true", "parts") or not 0.0 < self._iou <= 1.0
        ):
            raise SammiError(
                f"eval.mask_iou={self._iou}: give a share above 0, with eval.masks=true or parts"
            )
        if self._kind == "own":
            return
        if model.masks is None:
            raise SammiError(f"eval.masks={self._kind}: this model takes no masks; leave it out")
        if self._kind != "none" and self._regions is None:
            raise SammiError(
                f"eval.masks={self._kind}: {dataset.name} knows no regions; OpenShapes does"
            )
        self.num_slots = _NUM_SLOTS[self._kind]

    def __call__(self, index: int, size: tuple[int, int]) -> Bool[NpArray, "n h w"] | None:
        """The masks of one example of (height, width) pixels; None: the model's own."""
        if self._kind == "own":
            return None
        if self._kind == "none":
            return np.zeros((0, *size), bool)
        masks = self._regions(index, self._kind)
        if len(masks) > self.num_slots:
            largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[: self.num_slots]
            masks = masks[np.sort(largest)]
        if self._iou is not None:
            masks = degrade(masks, self._iou, np.random.default_rng(index))
        return masks


def degrade(
    masks: Bool[NpArray, "n h w"], iou: float, rng: np.random.Generator
) -> Bool[NpArray, "n h w"]:
    """The masks with their outlines bent by smooth noise, each to about that IoU with itself.

    The signed distance to a mask's outline gets smooth noise, as strong as the IoU asks for: pixels
    are lost at some places and gained at others. Masks of a few pixels meet the IoU less exactly.

    Args:
        masks: to degrade; not changed.
        iou: above 0, at most 1.
        rng: of the noise.
    """
    return np.stack([_degrade_one(mask, iou, rng) for mask in masks]) if len(masks) else masks


def _degrade_one(
    mask: Bool[NpArray, "h w"], iou: float, rng: np.random.Generator
) -> Bool[NpArray, "h w"]:
    if not mask.any() or iou == 1.0:
        return mask
    size = max(1.0, _NOISE_SIZE * float(np.sqrt(mask.sum())))
    noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), size)
    noise = (noise - noise.mean()) / noise.std()
    distance = _signed_distance(mask)
    low, high = 0.0, 4.0 * max(size, float(distance.max()))
    for _ in range(_BISECTIONS):
        strength = (low + high) / 2
        bent = distance + strength * noise > 0
        if (bent & mask).sum() / (bent | mask).sum() > iou:
            low = strength
        else:
            high = strength
    return distance + high * noise > 0


def _signed_distance(mask: Bool[NpArray, "h w"]) -> Float[NpArray, "h w"]:
    """Pixels to the outline: positive inside, negative outside.

    The frame's border is no outline, but for a mask that has no other.
    """
    padded = np.pad(mask, 1, mode="constant" if mask.all() else "edge")
    inside: Any = ndimage.distance_transform_edt(padded)
    outside: Any = ndimage.distance_transform_edt(~padded)
    return (inside - outside)[1:-1, 1:-1]
