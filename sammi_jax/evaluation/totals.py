"""What an evaluation adds up, on the device, in integers that do not overflow.

JAX counts in 32 bits unless told otherwise, and one cell of a confusion matrix passes 2**32 pixels
on a large set: every sum is kept in two uint32 words. Integers also make the result independent of
the order of the images, so that any batch size, any number of devices and any interruption give
the same bits.
"""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sammi_jax.typing import Array, Int, NpArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Counts:
    """Counts of some images; uint32 arrays on the device, int64 on the host."""

    confusion: Any  # [C, C] pixels, rows = label
    boundary: Any  # [3, C] boundary pixels: in both, in the label, in the prediction
    points: Any  # [] valid point prompts
    masks: Any  # [] valid masks after aggregation
    images: Any  # []


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """Sums of counts as 64-bit integers in two words."""

    low: Counts
    high: Counts


def zero_totals(num_classes: int) -> Totals:
    """Nothing counted yet (host arrays)."""

    def zeros() -> Counts:
        word = np.uint32
        return Counts(
            np.zeros((num_classes, num_classes), word),
            np.zeros((3, num_classes), word),
            *(np.zeros((), word) for _ in range(3)),
        )

    return Totals(zeros(), zeros())


def add_counts(totals: Totals, counts: Counts) -> Totals:
    """Totals with one batch more; each of its counts must be below 2**32."""
    low = jax.tree.map(jnp.add, totals.low, counts)  # wraps
    high = jax.tree.map(
        lambda word, sum_, added: word + (sum_ < added).astype(jnp.uint32),
        totals.high, low, counts,
    )  # fmt: skip
    return Totals(low, high)


def to_host(totals: Totals) -> Counts:
    """The sums as int64 numpy arrays."""
    return jax.tree.map(
        lambda low, high: np.asarray(low, np.int64) + (np.asarray(high, np.int64) << 32),
        totals.low, totals.high,
    )  # fmt: skip


def to_arrays(totals: Totals) -> dict[str, NpArray]:
    """Both words of every sum by name, to be saved."""
    return {
        f"{word}_{field.name}": np.asarray(getattr(getattr(totals, word), field.name))
        for word in ("low", "high")
        for field in fields(Counts)
    }


def from_arrays(arrays: dict[str, NpArray]) -> Totals:
    """The inverse of `to_arrays`."""
    words = (
        Counts(**{field.name: arrays[f"{word}_{field.name}"] for field in fields(Counts)})
        for word in ("low", "high")
    )
    return Totals(*words)


def count_pairs(
    label: Int[Array, " n"], prediction: Int[Array, " n"], counted: Array, num_classes: int
) -> Array:
    """The confusion matrix uint32 ``[C, C]`` of the pixels that are ``counted``."""
    cell = jnp.where(counted, label * num_classes + prediction, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.uint32).at[cell].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


def count_classes(label: Int[Array, " n"], counted: Array, num_classes: int) -> Array:
    """Pixels of each class, uint32 ``[C]``, of those that are ``counted``."""
    cell = jnp.where(counted, label, num_classes)
    return jnp.zeros(num_classes + 1, jnp.uint32).at[cell].add(1)[:-1]
