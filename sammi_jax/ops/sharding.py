"""Constraints on where values live, for the few places where XLA chooses badly on its own.

They speak of the mesh in use (`jax.set_mesh`) and do nothing where there is none; results stay the
same up to rounding.
"""

import jax
from jax.sharding import PartitionSpec

from sammi_jax.typing import Array


def spread(x: Array) -> Array:
    """The leading axis split over all devices, uneven shares padded."""
    mesh = jax.sharding.get_abstract_mesh()
    return _constrain(x, PartitionSpec(mesh.axis_names))


def whole(x: Array) -> Array:
    """A whole copy on every device."""
    return _constrain(x, PartitionSpec())


def _constrain(x: Array, spec: PartitionSpec) -> Array:
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
