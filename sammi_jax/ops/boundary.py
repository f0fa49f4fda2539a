"""Boundaries of regions in a label map, for boundary IoU.

Cheng et al., Boundary IoU, 2021 (https://arxiv.org/abs/2103.16562): a region's boundary is the part
of it within ``d`` pixels of its contour, that is the region without its erosion.
"""

import jax
import jax.numpy as jnp

from sammi_jax.typing import Array, Bool, Int

OUTSIDE = -1  # the value of pixels beyond the image: every region ends there


def region_boundary(labels: Int[Array, "h w"], distance: Int[Array, ""]) -> Bool[Array, "h w"]:
    """Pixels that have another value, or the image border, within ``distance`` rows and columns.

    Equal to ``region & ~erosion(region)`` for every value's region at once, where the erosion has a
    square of side ``2 * distance + 1``.
    """
    padded = jnp.pad(labels, 1, constant_values=OUTSIDE)

    def grow(_: Array, extremes: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = extremes
        return -_widen(-low), _widen(high)

    low, high = jax.lax.fori_loop(0, distance, grow, (padded, padded))
    return (low != high)[1:-1, 1:-1]


def _widen(values: Int[Array, "h w"]) -> Int[Array, "h w"]:
    """The largest value of each 3 x 3 neighborhood, within the array."""
    for axis in (0, 1):
        before = jnp.concatenate(
            [jax.lax.slice_in_dim(values, 0, 1, axis=axis),
             jax.lax.slice_in_dim(values, 0, -1, axis=axis)], axis=axis
        )  # fmt: skip
        after = jnp.concatenate(
            [jax.lax.slice_in_dim(values, 1, None, axis=axis),
             jax.lax.slice_in_dim(values, -1, None, axis=axis)], axis=axis
        )  # fmt: skip
        values = jnp.maximum(values, jnp.maximum(before, after))
    return values
