"""A training batch: the arrays of one step, and their place on the mesh."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from sammi_jax.errors import SammiError
from sammi_jax.parallel.mesh import batch_sharding, replicated


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The arrays of one training step.

    Attributes:
        examples: arrays whose leading axis is the batch, which is split over the devices.
        shared: arrays that belong to all examples (token ids of the classes), replicated.
    """

    examples: dict[str, Any]
    shared: dict[str, Any] = field(default_factory=dict)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Check that a batch splits evenly over the mesh, in ``accumulate`` parts.

    Raises:
        SammiError: it does not, or ``accumulate`` is below 1.
    """
    if accumulate < 1:
        raise SammiError(f"accumulate={accumulate}: give at least 1 part")
    if batch_size % (mesh.size * accumulate):
        parts = "" if accumulate == 1 else f" x accumulate={accumulate}"
        raise SammiError(
            f"batch_size={batch_size} is not a multiple of the {mesh.size} devices{parts}"
        )


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Host arrays (this process's share of the examples) as arrays on the mesh."""
    sharding = batch_sharding(mesh)
    examples = {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.examples.items()
    }
    # Not jax.device_put: in a job it compares the processes' values by a collective, which must not
    # run in the thread that prefetches.
    whole = replicated(mesh)
    shared = {
        name: jax.make_array_from_process_local_data(whole, np.asarray(value))
        for name, value in batch.shared.items()
    }
    return Batch(examples, shared)


def fetch(array: Any) -> np.ndarray:
    """The whole array as numpy, also where other processes hold parts of it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
