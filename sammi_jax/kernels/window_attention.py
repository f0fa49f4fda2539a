"""SAM's attention within windows, as a kernel for TPUs.

Queries and keys become 128 wide: a query is followed by its products with the positions of all
rows and columns of the window, a key by a one at its own row and column, so that one product gives
scores with positions. The products of a query with all relative positions are one product, too:
its row of the result is rotated by the query's own row or column.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sammi_jax.kernels.parts import LANES, ROWS, dot, dot_t
from sammi_jax.typing import Array, Float

ROW = ROWS  # cells that a row of a window is filled up to
_MASKED = -1e30


def fits(window: int, dim: int) -> bool:
    """Whether the kernel serves windows of this side and heads of this width."""
    return window <= ROW and dim + 2 * window + 1 <= LANES


def attend_windows(
    query: Float[Array, "n m c"],
    key: Float[Array, "n m c"],
    value: Float[Array, "n m c"],
    rel_h: Float[Array, "l d"],
    rel_w: Float[Array, "l d"],
    *,
    interpret: bool = False,
) -> Float[Array, "n m c"]:
    """``softmax(q k / sqrt(d) + q rel_h[y - y'] + q rel_w[x - x']) v`` in each of ``n`` windows.

    Args:
        query: ``m`` = window x `ROW` cells, of which those beyond the window in a row are no keys
            and whose results mean nothing; ``c`` holds the heads.
        key: see ``query``.
        value: see ``query``.
        rel_h: relative positions of rows, from ``-(window - 1)`` to ``window - 1``.
        rel_w: the same of columns.
        interpret: run on any device, slowly.
    """
    count, cells, channels = query.shape
    window, dim = cells // ROW, rel_h.shape[1]
    table = jnp.zeros((dim, LANES), query.dtype)
    half = LANES // 2
    table = table.at[:, : 2 * window - 1].set(rel_h[::-1].T.astype(query.dtype))
    table = table.at[:, half : half + 2 * window - 1].set(rel_w[::-1].T.astype(query.dtype))
    block = pl.BlockSpec((1, cells, channels), lambda i: (i, 0, 0))
    whole = lambda shape: pl.BlockSpec(shape, lambda i: (0, 0))  # noqa: E731
    return pl.pallas_call(
        partial(_kernel, window=window, dim=dim),
        grid=(count,),
        in_specs=[block, block, block, whole((dim, LANES)), whole((cells, LANES))],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        name="sam_window_attention",
        interpret=interpret,
    )(query, key, value, table, jnp.asarray(_places(window, dim), query.dtype))


def _places(window: int, dim: int) -> np.ndarray:
    """What follows each key: ones at its row and column, and a mask beyond the window."""
    row, column = np.divmod(np.arange(window * ROW), ROW)
    places = np.zeros((window * ROW, LANES), np.float32)
    inside = column < window
    cells = np.arange(window * ROW)
    places[cells, dim + row] = 1.0
    places[cells[inside], dim + window + column[inside]] = 1.0
    places[~inside, dim + 2 * window] = _MASKED
    return places


def _kernel(query, key, value, table, places, out, *, window, dim):
    rest = LANES - dim
    lane = jax.lax.broadcasted_iota(jnp.int32, (ROW, LANES), 1)
    in_h, in_w = lane < dim + window, lane < dim + 2 * window
    last = jnp.where(lane == dim + 2 * window, 1.0, 0.0)
    ones = jnp.ones((query.shape[1], rest), query.dtype)
    for start in range(0, query.shape[2], dim):
        head = slice(start, start + dim)
        q = query[0, :, head]
        products = dot(q, table[...])  # with the relative positions of rows, then of columns
        ends = []
        for y in range(window):
            mine = products[y * ROW : (y + 1) * ROW]
            by_row = pltpu.roll(mine, (dim + y - window + 1) % LANES, 1)
            by_column = pltpu.roll(mine, (dim + 1 - LANES // 2) % LANES, 1, stride=1, stride_axis=0)
            end = jnp.where(in_h, by_row, jnp.where(in_w, by_column, last))
            ends.append(end[:, dim:])
        q = (q.astype(jnp.float32) * dim**-0.5).astype(query.dtype)
        q = jnp.concatenate([q, jnp.concatenate(ends, axis=0).astype(q.dtype)], axis=1)
        k = jnp.concatenate([key[0, :, head], places[:, dim:]], axis=1)
        v = jnp.concatenate([value[0, :, head], ones], axis=1)
        scores = dot_t(q, k)
        weights = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
        sums = dot(weights.astype(q.dtype), v)  # in the last lane the sum of the weights
        out[0, :, head] = (sums[:, :dim] / sums[:, LANES - 1 :]).astype(out.dtype)
