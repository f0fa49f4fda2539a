"""What an evaluation adds up: counts of each batch on the device, their sums on the host.

JAX counts in 32 bits unless told otherwise. The counts of one batch fit these, but one cell of a
confusion matrix passes 2**32 pixels on a large set, so sums are int64 numpy arrays. Integers also
make the result independent of the order of the images: any batch size, any number of devices and
any interruption give the same bits.
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
    """Counts of some images: of a batch in uint32 on the device, sums in int64 on the host."""

    confusion: Any  # [C, C] pixels, rows = label
    boundary: Any  # [3, C] boundary pixels: in both, in the label, in the prediction
    points: Any  # [] valid point prompts
    masks: Any  # [] valid masks after aggregation
    images: Any  # []


def zero_sums(num_classes: int) -> Counts:
    """Nothing counted yet."""
    return Counts(
        np.zeros((num_classes, num_classes), np.int64),
        np.zeros((3, num_classes), np.int64),
        *(np.zeros((), np.int64) for _ in range(3)),
    )


def add_counts(sums: Counts, counts: Counts) -> Counts:
    """Sums with one batch more; waits until its counts are computed."""
    return jax.tree.map(lambda total, count: total + np.asarray(count, np.int64), sums, counts)


def to_arrays(sums: Counts) -> dict[str, NpArray]:
    """The sums by name, to be saved."""
    return {field.name: getattr(sums, field.name) for field in fields(Counts)}


def from_arrays(arrays: dict[str, NpArray]) -> Counts:
    """The inverse of `to_arrays`."""
    return Counts(**{field.name: arrays[field.name] for field in fields(Counts)})


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
