"""Connected pieces of a map, in numpy alone."""

import numpy as np

from sammi_jax.typing import Int, NpArray

MIN_PART = 6  # pixels


def connected_parts(key: Int[NpArray, "h w"], min_pixels: int = MIN_PART) -> Int[NpArray, "h w"]:
    """4-connected regions of equal ``key``, int32 from 1 in raster order of their first pixel.

    Regions of fewer than ``min_pixels`` pixels get 0. Horizontal runs are joined with the runs they
    touch in the next row: the smaller root is hooked on, paths are halved, until nothing changes.
    """
    starts = np.ones(key.shape, bool)
    starts[:, 1:] = key[:, 1:] != key[:, :-1]
    runs = (np.cumsum(starts.ravel()) - 1).reshape(key.shape)
    touching = key[1:] == key[:-1]
    touching &= starts[1:] | starts[:-1]  # once for each pair of runs
    touching[:, 0] = key[1:, 0] == key[:-1, 0]
    below, above = runs[1:][touching], runs[:-1][touching]

    root = np.arange(runs[-1, -1] + 1)
    while True:
        a, b = root[above], root[below]
        differ = a != b
        if not differ.any():
            break
        above, below, a, b = above[differ], below[differ], a[differ], b[differ]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while (root[root] != root).any():
            root = root[root]

    pixels = np.bincount(root[runs].ravel(), minlength=root.size)
    kept = pixels >= min_pixels
    number = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return number[root][runs]
