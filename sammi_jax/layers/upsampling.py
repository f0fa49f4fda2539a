"""A transposed convolution and the 3 x 3 convolution after it as a single one, for CPUs.

Nothing stands between them, so that together they are linear: each of the four cells that a cell
becomes depends on 2 x 2 cells of the input. That is a third of the decoder's arithmetic less, and
the map between the two is never made. Accelerators keep the two, whose channels suit them better.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.layers.convolution import conv
from sammi_jax.typing import Array, Float


def compose(
    up: Float[Array, "c 2 2 m"], kernel: Float[Array, "3 3 m d"]
) -> Float[Array, "2 2 c k"]:
    """The kernel of both, ``k = 4 d``: the four cells that a cell becomes, row by row.

    Args:
        up: of the transposed convolution, as in `sammi_jax.layers.TransposedConv`.
        kernel: of the convolution after it.
    """
    # Output row 2 h + a is made of the fine rows 2 h + a + i - 1, i < 3. These are rows
    # 2 (h + a - 1 + r) + p: row p of those that row r of the 2 x 2 cells becomes.
    taken = np.zeros((2, 3, 2, 2), np.float32)
    for a in range(2):
        for i in range(3):
            row, p = divmod(a + i - 1, 2)
            taken[a, i, row - (a - 1), p] = 1.0
    both = jnp.einsum("airp,bjsq,ijmd->abrspqmd", taken, taken, kernel)
    both = jnp.einsum("cpqm,abrspqmd->rscabd", up, both)
    return rearrange(both, "r s c a b d -> r s c (a b d)").astype(kernel.dtype)


def upsampled_conv(
    x: Float[Array, "n h w c"],
    up: Float[Array, "c 2 2 m"],
    kernel: Float[Array, "3 3 m d"],
    composed: Float[Array, "2 2 c k"],
) -> Float[Array, "n h2 w2 d"]:
    """Up-sample twice by the transposed convolution, without bias, and convolve the result.

    Args:
        x: maps.
        up: of the transposed convolution.
        kernel: of the convolution.
        composed: `compose` of both, made once for all maps.
    """
    return jax.lax.platform_dependent(x, up, kernel, composed, cpu=_at_once, default=_in_turn)


def _at_once(x: Array, up: Array, kernel: Array, composed: Array) -> Array:
    del up, kernel
    height, width = x.shape[1:3]
    cells = conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), composed, "VALID")
    cells = rearrange(cells, "n h w (a b d) -> n h w a b d", a=2, b=2)
    rows = [
        jnp.stack([cells[:, a : a + height, b : b + width, a, b] for b in range(2)], axis=3)
        for a in range(2)
    ]
    return rearrange(jnp.stack(rows, axis=2), "n h a w b d -> n (h a) (w b) d")


def _in_turn(x: Array, up: Array, kernel: Array, composed: Array) -> Array:
    del composed
    fine = x @ rearrange(up, "c i j m -> c (i j m)")
    fine = rearrange(fine, "n h w (i j m) -> n (h i) (w j) m", i=2, j=2)
    return conv(fine, kernel)
