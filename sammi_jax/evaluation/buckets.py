"""Images of many sizes in a few shapes: which images share a batch, and the shape of its labels.

Label maps are padded to the shape of their bucket. The network's input is a square canvas, whatever
the bucket, so each bucket costs one small compilation: of resizing, argmax and counting.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sammi_jax.errors import SammiError

_STEP = 128  # sides are rounded up to a multiple of it at first,
_MAX_CANDIDATES = 64  # or of a larger one, so that few pairs are left to be compared

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class EvalBatch:
    """Images that are evaluated together.

    Attributes:
        shape: (height, width) that their label maps are padded to.
        indices: of the images in the data set; at most the batch size.
    """

    shape: Size
    indices: tuple[int, ...]


def plan_batches(sizes: Sequence[Size], batch_size: int, max_buckets: int) -> list[EvalBatch]:
    """Batches in which every image occurs once; the same for the same arguments.

    Raises:
        SammiError: ``batch_size`` or ``max_buckets`` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("max_buckets", max_buckets)):
        if value < 1:
            raise SammiError(f"eval.{name}={value}: must be at least 1")
    bucket_of = choose_buckets(sizes, max_buckets)
    members: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        members.setdefault(bucket_of[size], []).append(index)
    return [
        EvalBatch(shape, tuple(indices[start : start + batch_size]))
        for shape, indices in members.items()
        for start in range(0, len(indices), batch_size)
    ]


def choose_buckets(sizes: Sequence[Size], max_buckets: int) -> dict[Size, Size]:
    """Each size's bucket; buckets are merged, least padding first, down to ``max_buckets``."""
    counts = Counter(sizes)
    step = _STEP
    while len({_round_up(size, step) for size in counts}) > _MAX_CANDIDATES:
        step *= 2
    rounded = {size: _round_up(size, step) for size in counts}
    weights: Counter[Size] = Counter()
    for size, count in counts.items():
        weights[rounded[size]] += count
    moved: dict[Size, Size] = {}
    while len(weights) > max_buckets:
        first, second = min(
            ((a, b) for a in weights for b in weights if a < b),
            key=lambda pair: (_padding(*pair, weights), pair),
        )
        joint = _joint(first, second)
        count = weights.pop(first) + weights.pop(second)
        weights[joint] += count
        moved |= {bucket: joint for bucket in (first, second) if bucket != joint}
    return {size: _follow(bucket, moved) for size, bucket in rounded.items()}


def _round_up(size: Size, step: int) -> Size:
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def _joint(a: Size, b: Size) -> Size:
    return max(a[0], b[0]), max(a[1], b[1])


def _padding(a: Size, b: Size, weights: Counter[Size]) -> int:
    """Pixels of padding that merging two buckets adds."""
    height, width = _joint(a, b)
    return sum(weights[size] * (height * width - size[0] * size[1]) for size in (a, b))


def _follow(bucket: Size, moved: dict[Size, Size]) -> Size:
    while bucket in moved:
        bucket = moved[bucket]
    return bucket
