"""How arrays are split over devices: one mesh, a rule for parameters by size, a rule for batches.

Modules have no sharding annotations but the few of `ops.sharding`: XLA propagates the shardings of
the arguments.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sammi_jax.config.experiment import MeshConfig
from sammi_jax.errors import SammiError

AXES = ("data", "fsdp")
MIN_SHARDED_BYTES = 4 * 2**20  # smaller parameters are cheaper to replicate than to gather


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh ``(data, fsdp)`` over ``devices``, which may be described only; None: all there are.

    Of several slices each is a block of rows: ``fsdp`` lies inside a slice, ``data`` goes over all.

    Raises:
        SammiError: ``fsdp`` does not divide the number of a slice's devices, or the devices are not
            in ``slices`` slices.
    """
    devices = jax.devices() if devices is None else devices
    count, slices = len(devices), config.slices
    # A GPU's slice is its node. A CPU has none: there each process counts as one.
    platform = devices[0].platform
    by_process = platform == "cpu"
    found = len({d.process_index if by_process else getattr(d, "slice_index", 0) for d in devices})
    # Only TPUs must not be taken for one slice.
    if found != slices and (slices != 1 or platform == "tpu"):
        what = "processes" if by_process else "slices"
        raise SammiError(f"mesh.slices={slices}, but the {count} devices are in {found} {what}")
    count //= slices
    if config.fsdp < 1 or count % config.fsdp:
        where = "" if slices == 1 else " of a slice"
        raise SammiError(f"mesh.fsdp={config.fsdp} does not divide the {count} devices{where}")
    # As jax.make_mesh, which raises an error on some TPUs where an axis of the mesh is not an axis
    # of the pod, such as fsdp=2 on v6e:4x4.
    shape = (count // config.fsdp, config.fsdp)
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1), devices, process_is_granule=by_process,
            allow_split_physical_axes=True,
        )  # fmt: skip
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def over_devices(function: Any, mesh: Mesh, in_specs: tuple[Any, ...], out_specs: Any) -> Any:
    """``function`` of each device's share of the arrays, by ``shard_map``.

    Args:
        function: of pytrees of arrays; what it returns of the whole batch it has summed itself.
        mesh: the devices.
        in_specs: for each argument `AXES` (its leading axis is split) or None (a whole copy).
        out_specs: the same for the result, or for each of a tuple.
    """
    spec = lambda axes: PartitionSpec() if axes is None else PartitionSpec(axes)  # noqa: E731
    outs = spec(out_specs) if out_specs == AXES else tuple(map(spec, out_specs))
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(map(spec, in_specs)),
        out_specs=outs,
        # sums over the mesh are made by hand; the checker cannot follow `lax.map`
        check_vma=False,
    )


def fsdp_spec(path: str, shape: tuple[int, ...], itemsize: int, num_shards: int) -> PartitionSpec:
    """Split the largest axis that ``num_shards`` divides, but never the layer axis of a `Stack`.

    Args:
        path: of the parameter, with ``/`` as separator.
        shape: of the parameter.
        itemsize: bytes of an element; below `MIN_SHARDED_BYTES` in all nothing is split.
        num_shards: size of the mesh's ``fsdp`` axis.
    """
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
