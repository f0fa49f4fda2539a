"""The part of a sharded array that this process holds."""

from typing import Any

import numpy as np

from sammi_jax.typing import NpArray


def local_rows(array: Any) -> NpArray:
    """The rows of a batch-sharded array that this process holds, in order."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
