"""A convolution with a kernel gradient that CPUs compute fast.

XLA's CPU compiler turns the gradient of a kernel into a convolution whose window is a whole map: a
quarter of the speed of the forward pass, and a tenth within a loop. As products it is 2.5 times as
fast, one map at a time, so that it stays in the cache.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sammi_jax.ops.sharding import sum_by_device
from sammi_jax.typing import Array, Float

Padding = Literal["SAME", "VALID"]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEWEST_CHANNELS = 16  # products of fewer are slower than XLA's convolution


def conv(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k c d"], padding: Padding = "SAME"
) -> Float[Array, "n h2 w2 d"]:
    """Convolve with stride 1.

    Args:
        x: maps.
        kernel: of an odd size if the maps keep theirs.
        padding: "SAME": zeros around the maps keep their size; "VALID": only where the kernel lies
            within a map, so that each side loses ``k - 1``.
    """
    if min(x.shape[-1], kernel.shape[-1]) < _FEWEST_CHANNELS:
        return _plain(x, kernel, padding)
    return _conv(x, kernel, padding)


def _plain(x: Array, kernel: Array, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, padding: Padding) -> Array:
    return _plain(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, Any]:
    return _plain(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    of_x = jax.vjp(lambda x: _plain(x, kernel, padding), x)[1](slope)[0]
    of_kernel = jax.lax.platform_dependent(
        x,
        slope,
        kernel,
        cpu=lambda x, slope, kernel: _kernel_gradient(x, slope, kernel.shape[0], padding).astype(
            kernel.dtype
        ),
        default=lambda x, slope, kernel: jax.vjp(lambda k: _plain(x, k, padding), kernel)[1](slope)[
            0
        ],
    )
    return of_x, of_kernel


_conv.defvjp(_forward, _backward)


def _kernel_gradient(
    x: Float[Array, "n h w c"], slope: Float[Array, "n h2 w2 d"], size: int, padding: Padding
) -> Float[Array, "k k c d"]:
    """``sum over n, h, w of x[n, h + i, w + j, :] slope[n, h, w, :]``, ``x`` with its padding."""
    margin = size // 2 if padding == "SAME" else 0
    beside = size - 1 - margin  # columns of zeros beside the slopes
    channels, out = x.shape[-1], slope.shape[-1]

    def of_maps(x: Array, slope: Array) -> Array:
        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return total + of_map(*pair), None

        zero = jnp.zeros((size, channels, size * out), jnp.float32)
        return jax.lax.scan(add, zero, (x, slope))[0]

    def of_map(x: Array, slope: Array) -> Array:
        """Rows are shifted in ``x``, columns in ``slope``, where they lie beside each other."""
        width, height = x.shape[1], slope.shape[0]
        x = jnp.pad(x, ((margin, margin), (0, 0), (0, 0)))
        slope = jnp.pad(slope, ((0, 0), (beside, beside), (0, 0)))
        shifted = [slope[:, size - 1 - j : size - 1 - j + width] for j in range(size)]
        slopes = jnp.concatenate(shifted, axis=-1).reshape(-1, size * out)
        rows = [x[i : i + height].reshape(-1, channels).T for i in range(size)]
        return jnp.stack(
            [jnp.matmul(row, slopes, preferred_element_type=jnp.float32) for row in rows]
        )

    total = sum_by_device(of_maps, (x, slope))
    return total.reshape(size, channels, size, out).transpose(0, 2, 1, 3)
