"""Layer norm in one pass over a map, for TPUs.

XLA reads the map once for the mean, once for the variance and once for the result.
"""

from functools import partial

import jax
from jax.experimental import pallas as pl

from sammi_jax.kernels.parts import LANES, f32, normalize
from sammi_jax.typing import Array, Float

_STEP = 512  # rows at a time


def fits(rows: int, dim: int) -> bool:
    """Whether the kernel serves so many rows of this many channels."""
    return rows % _STEP == 0 and dim % LANES == 0


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


def _kernel(x, scale, bias, out, *, eps):
    out[...] = _normed(f32(x[...]), f32(scale[...]), f32(bias[...]), eps).astype(out.dtype)


def _normed(x, scale, bias, eps):
    return normalize(x, eps)[0] * scale + bias


def _forward(x, scale, bias, eps, interpret):
    return layer_norm(x, scale, bias, eps, interpret), (x, scale, bias)


def _backward(eps, interpret, inputs, gradient):
    """By XLA: where maps are large enough for the kernel, the norms are frozen."""
    del interpret

    def plain(x, scale, bias):
        return _normed(f32(x), f32(scale)[None], f32(bias)[None], eps).astype(gradient.dtype)

    return jax.vjp(plain, *inputs)[1](gradient)


layer_norm.defvjp(_forward, _backward)
