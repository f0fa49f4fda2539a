"""Attention with decomposed relative positions within the windows of a map.

Original: segment_anything/modeling/image_encoder.py, ``window_partition``, ``Attention`` and
``add_decomposed_rel_pos``. Zeros are padded below and to the right; they take part in attention,
where the projections' biases are their queries, keys and values.

Deviations: tokens are projected before the map is padded, and on accelerators a window's rows are
padded and the positions are part of the products (`_attend_in_rows`): equal up to rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.layers.attention import MASKED
from sammi_jax.models.sam.relative_attention import attend_cells
from sammi_jax.ops.windows import window_merge, window_partition
from sammi_jax.typing import Array, Float

_SUBLANES = 8  # rows of a TPU's tile: an axis before the last that is a multiple splits for free


Maps = tuple[Array, Array, Array]  # of queries, keys and values, each [b, h, w, c]


def window_attention(
    projected: Maps,
    bias: Float[Array, "3 c"],
    rel_h: Float[Array, "p p d"],
    rel_w: Float[Array, "p p d"],
) -> Float[Array, "b h w c"]:
    """`decomposed_attention` within each window of ``p x p`` cells; ``c`` holds heads of ``d``.

    Args:
        projected: queries, keys and values of a map, without their biases.
        bias: the biases; all that a padded cell has.
        rel_h: relative positions of rows, indexed by (row of the query, row of the key).
        rel_w: the same of columns.
    """
    return jax.lax.platform_dependent(
        projected, bias, rel_h, rel_w, cpu=_attend_in_windows, default=_attend_in_rows
    )


def _attend_in_windows(
    projected: Maps,
    bias: Float[Array, "3 c"],
    rel_h: Float[Array, "p p d"],
    rel_w: Float[Array, "p p d"],
) -> Float[Array, "b h w c"]:
    """Window by window as in the original."""
    window, dim = rel_h.shape[1:]
    height, width = projected[0].shape[1:3]
    pad_h, pad_w = -height % window, -width % window

    def cut(x: Array, bias: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, pad_h), (0, pad_w), (0, 0))) + bias[None, None, None]
        windows = window_partition(x, window)
        return rearrange(windows, "b n (p q) (h d) -> b n h p q d", p=window, d=dim)

    query, key, value = map(cut, projected, bias)
    heads = attend_cells(query, key, value, rel_h, rel_w)
    windows = rearrange(heads, "b n h p q d -> b n (p q) (h d)")
    return window_merge(windows, (height + pad_h, width + pad_w))[:, :height, :width]


def _attend_in_rows(
    projected: Maps,
    bias: Float[Array, "3 c"],
    rel_h: Float[Array, "p p d"],
    rel_w: Float[Array, "p p d"],
) -> Float[Array, "b h w c"]:
    """One row of windows after the other, in the layout that costs a TPU the fewest copies.

    Tiles of 8 x 128 hold the last two axes: rows of 14 cells would be copied whenever they are
    split or joined, so they are filled up to 16 with keys that are masked. For the same reason each
    query is multiplied with the positions of all rows and columns, and its own are picked by a
    mask. The scores of a row of windows stay in the on-chip memory.
    """
    window, dim = rel_h.shape[1:]
    height, width = projected[0].shape[1:3]
    rows, columns = -(-height // window), -(-width // window)
    length = window + -window % _SUBLANES
    pads = (0, rows * window - height), (0, (columns - 1) * window + length - width)

    def cut(x: Array, bias: Array) -> Array:
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        x = jnp.stack([x[:, :, i * window :][:, :, :length] for i in range(columns)], axis=1)
        x = x + bias[None, None, None, None]
        return rearrange(x, "b j (i p) q (h d) -> i (b j) h (p q) d", i=rows, d=dim)

    out = jax.lax.map(
        lambda row: _attend_placed(*row, rel_h, rel_w), tuple(map(cut, projected, bias))
    )
    out = rearrange(out, "i (b j) h (p q) d -> b i p j q (h d)", j=columns, p=window)
    out = rearrange(out[..., :window, :], "b i p j q c -> b (i p) (j q) c")
    return out[:, :height, :width]


@jax.checkpoint  # the backward pass makes a row's scores again instead of keeping them all
def _attend_placed(
    query: Float[Array, "n h m d"],
    key: Float[Array, "n h m d"],
    value: Float[Array, "n h m d"],
    rel_h: Float[Array, "p p d"],
    rel_w: Float[Array, "p p d"],
) -> Float[Array, "n h m d"]:
    """Attention within windows of ``m`` cells, of which those beyond ``p`` in a row do not count.

    The products of queries and positions have the queries' precision, as in the original.
    """
    window, dim = rel_h.shape[1:]
    row, column = np.divmod(np.arange(query.shape[-2]), query.shape[-2] // window)
    own, other = np.divmod(np.arange(window**2), window)  # of a pair of positions along one axis
    tables = jnp.concatenate([x.reshape(-1, dim) for x in (rel_h, rel_w)])
    axes = (row, np.minimum(column, window - 1))
    mine = np.concatenate([axis[:, None] == own for axis in axes], axis=1)
    there = np.concatenate([axis[:, None] == other for axis in axes], axis=1)
    positions = jnp.einsum("nhqd,od->nhqo", query, tables)
    positions = positions * jnp.asarray(mine, query.dtype)[None, None]
    product = {"preferred_element_type": jnp.float32}
    scores = jnp.einsum("nhqd,nhkd->nhqk", query * dim**-0.5, key, **product)
    scores = scores + jnp.einsum(
        "nhqo,ko->nhqk", positions, jnp.asarray(there, key.dtype), **product
    )
    masked = jnp.asarray(np.where(column < window, 0.0, MASKED), jnp.float32)
    scores = scores + masked[None, None, None]
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nhqk,nhkd->nhqd", weights, value)
