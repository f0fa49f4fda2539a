"""Where arrays live: one mesh, one size rule for parameters, one rule for batches.

Modules carry no annotations, but for the few of `ops.sharding`; XLA propagates from the arguments.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sammi_jax.config.experiment import MeshConfig
from sammi_jax.errors import SammiError

AXES = ("data", "fsdp")
MIN_SHARDED_BYTES = 4 * 2**20  # smaller parameters are cheaper to replicate than to gather


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh ``(data, fsdp)`` over all devices.

    Raises:
        SammiError: the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    if config.fsdp < 1 or devices % config.fsdp:
        raise SammiError(f"mesh.fsdp={config.fsdp} does not divide the {devices} devices")
    data = devices // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != devices:
        raise SammiError(
            f"mesh.data={config.data} x mesh.fsdp={config.fsdp} is not the number of devices, "
            f"{devices}; mesh.data=-1 takes what is left"
        )
    return jax.make_mesh((data, config.fsdp), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def fsdp_spec(path: str, shape: tuple[int, ...], itemsize: int, num_shards: int) -> PartitionSpec:
    """The size rule: split the largest axis that divides, never the layer axis of a `Stack`."""
    if num_shards == 1 or int(np.prod(shape)) * itemsize < MIN_SHARDED_BYTES:
        return PartitionSpec()
    first = 1 if "block" in path.split("/") else 0  # a Stack keeps its layers in `block`
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % num_shards == 0]
    if not axes:
        return PartitionSpec()
    axis = max(axes, key=lambda a: shape[a])
    return PartitionSpec(*(AXES[1] if a == axis else None for a in range(axis + 1)))


def fsdp_sharding(tree: Any, mesh: Mesh) -> Any:
    """A sharding for every array (or its shape) of a tree, by `fsdp_spec` on its path."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        size = np.dtype(leaf.dtype).itemsize
        return NamedSharding(mesh, fsdp_spec(name, tuple(leaf.shape), size, mesh.shape[AXES[1]]))

    return jax.tree_util.tree_map_with_path(sharding, tree)
