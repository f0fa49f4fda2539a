"""Samples the classes of one training step, inside the compiled program.

The labels of a batch may be spread over several hosts, none of which holds all of them; only the
compiled program does. [ours: CAT-Seg uses all classes in every step.]
"""

import jax
import jax.numpy as jnp

from sammi_jax.typing import Array, Int

OTHER_CLASS = -1  # label of pixels whose class was not sampled


def sample_classes(
    key: Array, labels: Int[Array, "b h w"], total: int, wanted: int
) -> Int[Array, " k"]:
    """A random choice of ``wanted`` classes, ascending; those of the labels are preferred.

    Args:
        key: of the random choice.
        labels: class indices; values outside ``0 .. total - 1`` are no class.
        total: how many classes there are.
        wanted: how many are chosen, at most ``total``.
    """
    present = (labels[..., None] == jnp.arange(total)[None, None, None]).any(axis=(0, 1, 2))
    priority = jax.random.uniform(key, (total,)) + present
    return jnp.sort(jax.lax.top_k(priority, wanted)[1])


def relabel(
    labels: Int[Array, "b h w"], classes: Int[Array, " k"], total: int, ignore_label: int
) -> Int[Array, "b h w"]:
    """Labels as positions in ``classes``; ignored pixels stay, all others are `OTHER_CLASS`."""
    positions = jnp.full(total, OTHER_CLASS).at[classes].set(jnp.arange(len(classes)))
    known = (labels >= 0) & (labels < total)
    found = jnp.where(known, positions[jnp.where(known, labels, 0)], OTHER_CLASS)
    return jnp.where(labels == ignore_label, ignore_label, found)
