"""Attention with decomposed relative positions over a whole map.

Original: segment_anything/modeling/image_encoder.py, ``Attention`` and ``add_decomposed_rel_pos``;
the positions are MViTv2's (Li et al. 2022, equation 4).

Deviations: large maps are processed in blocks of queries, so that their scores are never held
whole; but on a CPU, the positions are part of the products (`_placed`). All forms are equal up to
rounding.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.kernels.parts import LANES, serves
from sammi_jax.kernels.whole_attention import QUERY_BLOCK, attend_plainly, attend_whole, fits
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.ops.sharding import by_device
from sammi_jax.typing import Array, Float


def relative_positions(table: Float[Array, "l d"], size: int) -> Float[Array, "q k d"]:
    """``out[q, k] = table[q - k + size - 1]`` for positions along one axis of ``size`` cells.

    The table is that of `fitted_table`.
    """
    offsets = np.arange(size)[:, None] - np.arange(size)[None, :]
    return fitted_table(table, size)[offsets + size - 1]


def fitted_table(table: Float[Array, "l d"], size: int) -> Float[Array, "m d"]:
    """The positions from ``-(size - 1)`` to ``size - 1``.

    A table of another length than ``2 * size - 1`` is interpolated linearly, as in the original.
    """
    length = 2 * size - 1
    if table.shape[0] == length:
        return table
    return jnp.asarray(resize_matrix(table.shape[0], length), table.dtype) @ table


def decomposed_attention(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b h w d"]:
    """``softmax(q k / sqrt(d) + q rel_h[y, y'] + q rel_w[x, x']) v`` over the cells of a map.

    Args:
        query: heads are the last leading axis, as for ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        rel_h: relative positions of rows, indexed by (row of the query, row of the key).
        rel_w: the same of columns.
    """
    # Longer products are what an accelerator has to spare; a CPU has not.
    forms = {"cpu": attend_cells, "default": _attend_placed}
    cells = query.shape[-3] * query.shape[-2]
    if serves(query) and query.ndim == 5 and cells > QUERY_BLOCK and fits(cells):
        forms["tpu"] = attend_in_kernel
    return jax.lax.platform_dependent(query, key, value, rel_h, rel_w, **forms)


def attend_in_kernel(
    query: Float[Array, "b n h w d"],
    key: Float[Array, "b n h w d"],
    value: Float[Array, "b n h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
    *,
    interpret: bool = False,
) -> Float[Array, "b n h w d"]:
    """`decomposed_attention` by a kernel for TPUs, positions in the queries' precision."""
    queries, keys = _placed(query, key, rel_h, rel_w, terms=1, fill=LANES)
    values = rearrange(value, "b n h w d -> b n (h w) d")
    attend = partial(attend_whole, interpret=interpret)
    out = by_device(attend, (queries, keys, values))
    return rearrange(out, "b n (h w) d -> b n h w d", h=query.shape[2])


def attend_cells(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b h w d"]:
    """`decomposed_attention` in the form that is fast on a CPU: positions are added to scores."""
    # A CPU is twice as fast when one head's block of scores fits its cache.
    small = query.shape[-3] * query.shape[-2] <= QUERY_BLOCK
    return (_attend_whole if small else _attend_by_heads)(query, key, value, rel_h, rel_w)


def _attend_placed(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b h w d"]:
    """The positions as part of the products, `QUERY_BLOCK` queries at a time."""
    queries, keys = _placed(query, key, rel_h, rel_w)
    out = attend_plainly(queries, keys, rearrange(value, "... h w d -> ... (h w) d"))
    return rearrange(out, "... (h w) d -> ... h w d", h=query.shape[-3])


def _placed(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
    terms: int = 2,
    fill: int = 1,
) -> tuple[Float[Array, "*b q e"], Float[Array, "*b k e"]]:
    """Longer queries and keys whose products are ``q k / sqrt(d)`` plus both positions.

    A query is followed by its products with every position, a key by a one at its row and at its
    column. The positions enter as two terms of bfloat16's precision, since an accelerator may round
    what it multiplies to that; or as one. Zeros make the width a multiple of ``fill``.
    """
    height, width, dim = query.shape[-3:]
    full = query.astype(jnp.float32)
    bias_h = jnp.einsum("...hwd,hkd->...hwk", full, rel_h.astype(jnp.float32))
    bias_w = jnp.einsum("...hwd,wkd->...hwk", full, rel_w.astype(jnp.float32))
    bias = jnp.concatenate([bias_h, bias_w], axis=-1)
    parts = [bias]
    if terms == 2:
        high = jax.lax.reduce_precision(bias, exponent_bits=8, mantissa_bits=7)
        parts = [high, bias - high]
    rest = jnp.zeros((*query.shape[:-1], -(dim + terms * (height + width)) % fill))
    parts = [query * dim**-0.5, *(part.astype(query.dtype) for part in (*parts, rest))]
    rows, columns = np.repeat(np.eye(height), width, axis=0), np.tile(np.eye(width), (height, 1))
    places = np.concatenate([rows, columns] * terms, axis=1)
    places = np.pad(places, ((0, 0), (dim, rest.shape[-1])))
    key = rearrange(key, "... h w d -> ... (h w) d")
    key = jnp.pad(key, ((0, 0),) * (key.ndim - 1) + ((0, places.shape[1] - dim),))
    return (
        rearrange(jnp.concatenate(parts, axis=-1), "... h w e -> ... (h w) e"),
        key + jnp.broadcast_to(jnp.asarray(places, key.dtype), key.shape),
    )


def _attend_whole(
    query: Float[Array, "*b r w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "r h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b r w d"]:
    """Attention of some rows of queries to the whole map; scores and positions in float32."""
    full = query.astype(jnp.float32)
    bias_h = jnp.einsum("...rwd,rhd->...rwh", full, rel_h.astype(jnp.float32))
    bias_w = jnp.einsum("...rwd,wvd->...rwv", full, rel_w.astype(jnp.float32))
    scores = jnp.einsum(
        "...rwd,...hvd->...rwhv",
        query * query.shape[-1] ** -0.5,
        key,
        preferred_element_type=jnp.float32,
    )
    scores = scores + bias_h[..., :, None] + bias_w[..., None, :]
    weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(value.dtype)
    return jnp.einsum("...rwhv,...hvd->...rwd", weights, value)


def _attend_by_rows(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b h w d"]:
    """`_attend_whole` for all queries, `QUERY_BLOCK` of them at a time."""
    height, width = query.shape[-3:-1]
    fitting = [r for r in range(1, height + 1) if height % r == 0 and r * width <= QUERY_BLOCK]
    rows = max(fitting, default=1)
    if rows == height:
        return _attend_whole(query, key, value, rel_h, rel_w)

    @jax.checkpoint  # the backward pass makes a block's scores again instead of keeping them all
    def block(inputs: tuple[Array, Array]) -> Array:
        return _attend_whole(inputs[0], key, value, inputs[1], rel_w)

    query_blocks = rearrange(query, "... (i r) w d -> i ... r w d", r=rows)
    out = jax.lax.map(block, (query_blocks, rearrange(rel_h, "(i r) k d -> i r k d", r=rows)))
    return rearrange(out, "i ... r w d -> ... (i r) w d")


def _attend_by_heads(
    query: Float[Array, "*b h w d"],
    key: Float[Array, "*b h w d"],
    value: Float[Array, "*b h w d"],
    rel_h: Float[Array, "h h d"],
    rel_w: Float[Array, "w w d"],
) -> Float[Array, "*b h w d"]:
    """`_attend_by_rows`, one head (the last leading axis) at a time."""
    heads = [jnp.moveaxis(x, -4, 0) for x in (query, key, value)]
    out = jax.lax.map(lambda x: _attend_by_rows(x[0], x[1], x[2], rel_h, rel_w), heads)
    return jnp.moveaxis(out, 0, -4)
