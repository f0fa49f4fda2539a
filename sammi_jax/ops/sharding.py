"""Sharding constraints, for the few places where XLA's own choice is a bad one.

They use the current mesh (`jax.set_mesh`) and do nothing without one; results stay the same up to
rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sammi_jax.typing import Array


def spread(x: Array) -> Array:
    """Split the leading axis over all devices; uneven shares are padded."""
    mesh = jax.sharding.get_abstract_mesh()
    return _constrain(x, PartitionSpec(mesh.axis_names))


def whole(x: Array) -> Array:
    """Keep a complete copy on every device."""
    return _constrain(x, PartitionSpec())


def by_device(function: Callable[..., Any], batched: tuple[Any, ...], *shared: Any) -> Any:
    """``function(*batched, *shared)`` of each device's share, for what XLA cannot split itself.

    Args:
        function: each item of the leading axis is computed on its own; so are its results.
        batched: arrays, or trees of them, whose leading axes are split over all devices; where
            that is not possible, each device computes all.
        *shared: the same, whole on every device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return function(*batched, *shared)
    divisible = all(x.shape[0] % mesh.size == 0 for x in jax.tree.leaves(batched))
    split = PartitionSpec(mesh.axis_names) if divisible else PartitionSpec()
    specs = (split,) * len(batched) + (PartitionSpec(),) * len(shared)
    # The checker of what is the same on all devices knows no kernels.
    return jax.shard_map(function, in_specs=specs, out_specs=split, check_vma=False)(
        *batched, *shared
    )


def sum_by_device(function: Callable[..., Array], batched: tuple[Array, ...]) -> Array:
    """``function(*batched)``, a sum over the items of the leading axis, share by share.

    Args:
        function: its result for several items is the sum of its results for each.
        batched: arrays whose leading axes are split over all devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    divisible = all(x.shape[0] % max(mesh.size, 1) == 0 for x in batched)
    if mesh.empty or mesh.manual_axes or not divisible:
        return function(*batched)
    split = PartitionSpec(mesh.axis_names)
    summed = lambda *parts: jax.lax.psum(function(*parts), mesh.axis_names)  # noqa: E731
    return jax.shard_map(summed, in_specs=split, out_specs=PartitionSpec(), check_vma=False)(
        *batched
    )


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
