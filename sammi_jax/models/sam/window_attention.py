"""Attention with decomposed relative positions within the windows of a map.

Original: segment_anything/modeling/image_encoder.py, ``window_partition``, ``Attention`` and
``add_decomposed_rel_pos``. Zeros are padded below and to the right; they take part in attention,
where the projections' biases are their queries, keys and values.

Deviations: tokens are projected before the map is padded, and on accelerators a window's rows are
padded and the positions are part of the products (`_attend_in_rows`): equal up to rounding. On
TPUs in bfloat16 the attention is a kernel (`kernel_attention`).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.kernels.layer_norm import layer_norm_plainly, norm_windows
from sammi_jax.kernels.window_attention import ROW, attend_windows
from sammi_jax.layers.attention import MASKED, merge_heads, split_heads
from sammi_jax.models.sam.relative_attention import attend_cells, relative_positions
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
    length = window + -window % _SUBLANES

    def cut(x: Array, bias: Array) -> Array:
        x = _columns(x, window, length) + bias[None, None, None, None]
        return rearrange(x, "b j (i p) q (h d) -> i (b j) h (p q) d", p=window, d=dim)

    out = jax.lax.map(
        lambda row: _attend_placed(*row, rel_h, rel_w), tuple(map(cut, projected, bias))
    )
    out = rearrange(out, "i (b j) h (p q) d -> b i p j q (h d)", j=-(-width // window), p=window)
    return _joined(out, (height, width))


def cut_windows(x: Float[Array, "b h w c"], window: int) -> Float[Array, "n m c"]:
    """The windows of padded maps, row after row in each column, for `kernel_attention`.

    Each row of a window is followed by the cells to its right, so that there are `ROW`.
    """
    x = _columns(x, window, ROW)
    return rearrange(x, "b j (i p) q c -> (b j i) (p q) c", p=window)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def cut_normed_windows(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float,
    window: int,
    interpret: bool = False,
) -> Float[Array, "n m c"]:
    """`cut_windows` of a layer norm, as a kernel; the gradient is that of the plain forms."""
    return norm_windows(x, scale, bias, eps, window, ROW, interpret=interpret)


def cut_normed_windows_plainly(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float,
    window: int,
) -> Float[Array, "n m c"]:
    """`cut_normed_windows` without a kernel."""
    normed = layer_norm_plainly(x.reshape(-1, x.shape[-1]), scale, bias, eps)
    return cut_windows(normed.reshape(x.shape), window)


def _cut_forward(x, scale, bias, eps, window, interpret):
    return cut_normed_windows(x, scale, bias, eps, window, interpret), (x, scale, bias)


def _cut_backward(eps, window, interpret, inputs, gradient):
    del interpret
    plain = partial(cut_normed_windows_plainly, eps=eps, window=window)
    return jax.vjp(plain, *inputs)[1](gradient)


cut_normed_windows.defvjp(_cut_forward, _cut_backward)


def join_windows(
    x: Float[Array, "n m c"], window: int, size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Undo `cut_windows`; ``size`` is the maps' (height, width)."""
    rows, columns = (-(-side // window) for side in size)
    x = rearrange(x, "(b j i) (p q) c -> b i p j q c", i=rows, j=columns, p=window)
    return _joined(x, size)


def _columns(x: Float[Array, "b h w c"], window: int, length: int) -> Array:
    """Columns of windows ``[b, columns, rows * window, length, c]`` of padded maps."""
    height, width = x.shape[1:3]
    columns = -(-width // window)
    x = jnp.pad(x, ((0, 0), (0, -height % window), (0, columns * window + length - width), (0, 0)))
    return jnp.stack([x[:, :, i * window :][:, :, :length] for i in range(columns)], axis=1)


def _joined(x: Float[Array, "b i p j q c"], size: tuple[int, int]) -> Float[Array, "b h w c"]:
    """The maps of windows whose rows are longer than they are high."""
    x = rearrange(x[..., : x.shape[2], :], "b i p j q c -> b (i p) (j q) c")
    return x[:, : size[0], : size[1]]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def kernel_attention(
    query: Float[Array, "n m c"],
    key: Float[Array, "n m c"],
    value: Float[Array, "n m c"],
    rel_h: Float[Array, "l d"],
    rel_w: Float[Array, "l d"],
    interpret: bool = False,
) -> Float[Array, "n m c"]:
    """`attend_windows`, whose gradient is that of `attend_windows_plainly`."""
    return attend_windows(query, key, value, rel_h, rel_w, interpret=interpret)


def attend_windows_plainly(
    query: Float[Array, "n m c"],
    key: Float[Array, "n m c"],
    value: Float[Array, "n m c"],
    rel_h: Float[Array, "l d"],
    rel_w: Float[Array, "l d"],
) -> Float[Array, "n m c"]:
    """`attend_windows` without a kernel."""
    heads = query.shape[-1] // rel_h.shape[-1]
    window = query.shape[1] // ROW
    split = (split_heads(x, heads) for x in (query, key, value))
    tables = (relative_positions(table, window) for table in (rel_h, rel_w))
    return merge_heads(_attend_placed(*split, *tables))


def _forward(query, key, value, rel_h, rel_w, interpret):
    inputs = (query, key, value, rel_h, rel_w)
    return kernel_attention(*inputs, interpret), inputs


def _backward(interpret, inputs, gradient):
    del interpret
    return jax.vjp(attend_windows_plainly, *inputs)[1](gradient)


kernel_attention.defvjp(_forward, _backward)


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
