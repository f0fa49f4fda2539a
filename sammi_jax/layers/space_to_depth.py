"""Convolutions of maps in space-to-depth form: blocks of cells side by side in the channels.

``maps[h, w, (a, b, c)]`` is channel ``c`` of cell ``(f h + a, f w + b)``, for blocks of ``f x f``.
Few channels would leave most of a TPU's 128 lanes empty; ``f * f`` times as many fill them. A
convolution of such maps is one of 3 x 3 blocks, whose kernel is mostly zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.typing import Array, Float


def space_to_depth(x: Float[Array, "*b h w c"], factor: int) -> Float[Array, "*b h2 w2 k"]:
    """Blocks of ``factor x factor`` cells side by side, row by row."""
    return rearrange(x, "... (h a) (w b) c -> ... h w (a b c)", a=factor, b=factor)


def depth_to_space(x: Float[Array, "*b h w k"], factor: int) -> Float[Array, "*b h2 w2 c"]:
    """The inverse of `space_to_depth`."""
    return rearrange(x, "... h w (a b c) -> ... (h a) (w b) c", a=factor, b=factor)


def neighborhoods(x: Float[Array, "*b h w c"], factor: int) -> Float[Array, "*b h2 w2 k"]:
    """What 3 x 3 convolutions of the cells of each block see: ``factor + 2`` squared cells."""
    *batch, height, width, channels = x.shape
    x = jnp.pad(x.reshape(-1, height, width, channels), ((0, 0), (1, 1), (1, 1), (0, 0)))
    last = (height - factor, width - factor)
    seen = [
        x[:, i : i + last[0] + 1 : factor, j : j + last[1] + 1 : factor]
        for i in range(factor + 2)
        for j in range(factor + 2)
    ]
    return jnp.concatenate(seen, axis=-1).reshape(*batch, height // factor, width // factor, -1)


def neighborhood_kernel(kernel: Float[Array, "3 3 c d"], factor: int) -> Float[Array, "k l"]:
    """The convolution as a product with `neighborhoods`, the result in space-to-depth form."""
    taps = np.zeros((factor, factor + 2, 3), np.float32)
    for a in range(factor):
        for i in range(3):
            taps[a, a + i, i] = 1.0
    spread = jnp.einsum("aui,bvj,ijcd->uvcabd", taps, taps, kernel)
    return rearrange(spread, "u v c a b d -> (u v c) (a b d)").astype(kernel.dtype)


def convolution_taps(factor: int) -> np.ndarray:
    """``[f, 3, f, 3]``: whether output row a sees row b of the block p - 1 further by tap i."""
    taps = np.zeros((factor, 3, factor, 3), np.float32)
    for a in range(factor):
        for i in range(3):
            block, b = divmod(a + i - 1, factor)
            taps[a, block + 1, b, i] = 1.0
    return taps


def upsampling_taps(factor: int) -> np.ndarray:
    """``[2 f, 3, f, 4]``: the same for `sammi_jax.layers.upsampling.compose`.

    Tap ``2 a + r`` is row r of the kernel for the rows a of the pairs that rows become.
    """
    taps = np.zeros((2 * factor, 3, factor, 4), np.float32)
    for row in range(2 * factor):
        for r in range(2):
            block, b = divmod(row // 2 - 1 + row % 2 + r, factor)
            taps[row, block + 1, b, 2 * (row % 2) + r] = 1.0
    return taps


def spread_kernel(
    kernel: Float[Array, "i j c d"], taps: np.ndarray
) -> Float[Array, "p q f f c g g d"]:
    """A kernel on maps in space-to-depth form.

    Args:
        kernel: on the cells.
        taps: `convolution_taps` or `upsampling_taps`, for rows and columns.

    Returns:
        For the 3 x 3 blocks, the cells and channels of the input, and those of the output.
    """
    spread = jnp.einsum("gpfi,hqej,ijcd->pqfecghd", taps, taps, kernel)
    return spread.astype(kernel.dtype)


def spread_conv(
    x: Float[Array, "n h w k"], kernel: Float[Array, "p q f f c g g d"]
) -> Float[Array, "n h w l"]:
    """Convolve maps in space-to-depth form with the kernel of `spread_kernel`."""
    kernel = rearrange(kernel, "p q f e c g h d -> p q (f e c) (g h d)")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
