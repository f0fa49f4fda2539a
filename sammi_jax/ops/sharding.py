"""Sharding constraints, for the few places where XLA's own choice is a bad one.

They use the current mesh (`jax.set_mesh`) and do nothing without one; results stay the same up to
rounding.
"""

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


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
