"""Layer norm in one pass over a map, and with the map cut into windows, for TPUs.

XLA reads the map once for the mean, once for the variance and once for the result, and copies it
several times to cut it into windows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sammi_jax.kernels.parts import LANES, SUBLANES, VMEM, f32, normalize
from sammi_jax.typing import Array, Float

_STEP = 512  # rows at a time


def fits(rows: int, dim: int) -> bool:
    """Whether the kernel serves so many rows of this many channels."""
    return rows % _STEP == 0 and dim % LANES == 0


def windows_fit(width: int) -> bool:
    """Whether `norm_windows` serves maps of so many columns."""
    return width % SUBLANES == 0


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float,
    interpret: bool = False,
) -> Float[Array, "n c"]:
    """Normalize rows to mean 0 and variance 1, then scale and shift them; in float32.

    Args:
        x: rows.
        scale: of each channel.
        bias: of each channel.
        eps: added to the variance.
        interpret: run on any device, slowly.
    """
    step = min(_STEP, len(x))
    rows = pl.BlockSpec((step, x.shape[1]), lambda i: (i, 0))
    shared = pl.BlockSpec((1, x.shape[1]), lambda i: (0, 0))
    return pl.pallas_call(
        partial(_kernel, eps=eps),
        grid=(len(x) // step,),
        in_specs=[rows, shared, shared],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        name="layer_norm",
        interpret=interpret,
    )(x, scale[None], bias[None])


def norm_windows(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    eps: float,
    window: int,
    row: int,
    *,
    interpret: bool = False,
) -> Float[Array, "n m c"]:
    """The windows of the normed maps, with zeros where they reach over the edge.

    Args:
        x: maps.
        scale: of each channel.
        bias: of each channel.
        eps: added to the variance.
        window: side of a window.
        row: cells of a row of a window with the cells to its right, whose values mean nothing.
        interpret: run on any device, slowly.

    Returns:
        ``m = window * row`` cells of each; the windows of a column follow each other.
    """
    batch, height, width, dim = x.shape
    rows, columns = -(-height // window), -(-width // window)
    shared = pl.BlockSpec((1, dim), lambda b, i: (0, 0))
    out = (batch, columns, rows, window * row, dim)
    windows = pl.pallas_call(
        partial(_windows_kernel, eps=eps, height=height, row=row),
        grid=(batch, rows),
        in_specs=[pl.BlockSpec((1, window, width, dim), lambda b, i: (b, i, 0, 0)), shared, shared],
        out_specs=pl.BlockSpec((1, columns, 1, *out[3:]), lambda b, i: (b, 0, i, 0, 0)),
        out_shape=jax.ShapeDtypeStruct(out, x.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="norm_windows",
        interpret=interpret,
    )(x, scale[None], bias[None])
    return windows.reshape(-1, *out[3:])


def _windows_kernel(x, scale, bias, out, *, eps, height, row):
    _, window, width, dim = x.shape
    cells = f32(x[0]).reshape(window * width, dim)
    cells = _normed(cells, f32(scale[...]), f32(bias[...]), eps).reshape(window, width, dim)
    index = jax.lax.broadcasted_iota(jnp.int32, cells.shape, 0) + pl.program_id(1) * window
    cells = jnp.where(index < height, cells, 0.0)  # beyond the map anything may be read
    beyond = jnp.zeros((window, out.shape[1] * window + row - width, dim), cells.dtype)
    cells = jnp.concatenate([cells, beyond], axis=1)
    for column in range(out.shape[1]):
        part = cells[:, column * window : column * window + row]
        out[0, column, 0] = part.reshape(window * row, dim).astype(out.dtype)


def _kernel(x, scale, bias, out, *, eps):
    out[...] = _normed(f32(x[...]), f32(scale[...]), f32(bias[...]), eps).astype(out.dtype)


def _normed(x, scale, bias, eps):
    return normalize(x, eps)[0] * scale + bias


def _forward(x, scale, bias, eps, interpret):
    return layer_norm(x, scale, bias, eps, interpret), (x, scale, bias)


def _backward(eps, interpret, inputs, gradient):
    """By XLA: where maps are large enough for the kernel, the norms are frozen."""
    del interpret
    return jax.vjp(partial(layer_norm_plainly, eps=eps), *inputs)[1](gradient)


def layer_norm_plainly(
    x: Float[Array, "n c"], scale: Float[Array, " c"], bias: Float[Array, " c"], eps: float
) -> Float[Array, "n c"]:
    """`layer_norm` without a kernel."""
    return _normed(f32(x), f32(scale)[None], f32(bias)[None], eps).astype(x.dtype)


layer_norm.defvjp(_forward, _backward)
