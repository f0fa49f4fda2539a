"""Examines a data set: image sizes, label values, class counts, and the score of a random guess.

MESS publishes the score of a uniformly random guess for each of its sets. It follows from the class
frequencies alone, so labels that were mapped wrongly give another score.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from sammi_jax.data.prepare.pool import Tick, in_processes
from sammi_jax.data.sources import Glanceable
from sammi_jax.typing import NpArray

_PARTS = 4  # of a process
_TOLERANCE = 0.015  # percentage points: MESS prints two decimals


@dataclass(frozen=True)
class Report:
    """Counts over a whole set.

    Attributes:
        images: how many there are.
        sizes_differ: examples whose label has another size than their image.
        outside: pixels of each label value that is neither a class nor ignored.
        pixels: labeled pixels of each class, int64 ``[C]``.
        images_with: images in which each class occurs, int64 ``[C]``.
        ignored: pixels that do not count.
    """

    images: int
    sizes_differ: tuple[str, ...]
    outside: dict[int, int]
    pixels: NpArray
    images_with: NpArray
    ignored: int

    @property
    def absent(self) -> tuple[int, ...]:
        """Classes that never occur."""
        return tuple(int(index) for index in np.flatnonzero(self.pixels == 0))

    @property
    def random_miou(self) -> float:
        """`random_miou` of these pixels."""
        return random_miou(self.pixels)

    @property
    def is_mask(self) -> bool:
        """Whether all that the labels hold is class 0 and the ignored value: masks of 0 and 255."""
        present = np.flatnonzero(self.pixels)
        return len(self.pixels) > 1 and self.ignored > 0 and present.tolist() == [0]

    @property
    def sound(self) -> bool:
        """Whether an evaluation can use the set: its numbers would say something of the model."""
        wrong = self.sizes_differ or self.outside or self.is_mask or len(self.pixels) < 2
        return not wrong


def examine(
    source: Glanceable,
    num_classes: int,
    ignore_index: int,
    progress: bool = False,
    processes: int = 1,
) -> Report:
    """Read every label and the size of every image.

    Args:
        source: what to examine.
        num_classes: how many classes the labels may hold.
        ignore_index: label of pixels that do not count.
        progress: show a bar.
        processes: that read at the same time; with several of them the source is pickled.
    """
    # A few parts for each process, so that all end at about the same time.
    size = max(-(-len(source) // (_PARTS * processes if processes > 1 else 1)), 1)
    parts = [
        _Part(source, range(start, min(start + size, len(source))), num_classes, ignore_index)
        for start in range(0, len(source), size)
    ]
    with tqdm(total=len(source), desc="examine", unit="image", disable=not progress or None) as bar:
        found = list(in_processes(_count, parts, processes, bar.update))
    return Report(
        images=sum(part.images for part in found),
        sizes_differ=tuple(name for part in found for name in part.sizes_differ),
        outside=dict(sum((Counter(part.outside) for part in found), Counter())),
        pixels=sum((part.pixels for part in found), np.zeros(num_classes, np.int64)),
        images_with=sum((part.images_with for part in found), np.zeros(num_classes, np.int64)),
        ignored=sum(part.ignored for part in found),
    )


@dataclass(frozen=True)
class _Part:
    """Some examples of a source. It is sent to other processes."""

    source: Glanceable
    indices: range
    num_classes: int
    ignore_index: int


def _count(part: _Part, tick: Tick) -> Report:
    num_classes, ignore_index = part.num_classes, part.ignore_index
    pixels = np.zeros(num_classes, np.int64)
    images_with = np.zeros(num_classes, np.int64)
    outside: Counter[int] = Counter()
    differ: list[str] = []
    ignored = 0
    for index in part.indices:
        seen = part.source.glance(index)
        if seen.label.shape != seen.image_size:
            differ.append(seen.file_name)
        label = seen.label.ravel()
        below = label < 0
        if below.any():
            outside.update(Counter(label[below].tolist()))
            label = label[~below]
        counts = np.bincount(label, minlength=num_classes)
        if ignore_index < len(counts):
            ignored += int(counts[ignore_index])
            counts[ignore_index] = 0
        pixels += counts[:num_classes]
        images_with += counts[:num_classes] > 0
        for value in np.flatnonzero(counts[num_classes:]) + num_classes:
            outside[int(value)] += int(counts[value])
        tick(1)
    return Report(len(part.indices), tuple(differ), dict(outside), pixels, images_with, ignored)


def random_miou(pixels: NpArray) -> float:
    """Mean IoU in percent of a guess that draws one of the C classes uniformly for each pixel.

    A class with the share f of the labeled pixels has IoU f / (C f + 1 - f).

    Args:
        pixels: labeled pixels of each class, ``[C]``.
    """
    share = pixels / max(int(pixels.sum()), 1)
    return float(np.mean(share / (len(pixels) * share + 1 - share))) * 100


def agrees(found: float, published: float) -> bool:
    """Whether a random mIoU equals the published one, which is rounded to two decimals."""
    return abs(found - published) <= _TOLERANCE
