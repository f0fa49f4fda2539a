"""Square windows of a map: partition, its inverse, and the mask of cyclically shifted windows."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from sammi_jax.errors import SammiError
from sammi_jax.typing import Array, Float


def window_partition(
    x: Float[Array, "*b h w c"], window: int, shift: int = 0
) -> Float[Array, "*b n m c"]:
    """Cut a map into ``n`` windows (row-major) of ``m = window**2`` tokens (row-major).

    Args:
        x: maps whose height and width are multiples of ``window``.
        window: side of a window.
        shift: the map is first moved by this many cells up and left, cyclically.

    Raises:
        SammiError: height or width is no multiple of ``window``.
    """
    height, width = x.shape[-3:-1]
    if height % window or width % window:
        raise SammiError(
            f"a {height} x {width} map has no whole number of windows of side {window}: "
            "choose a window that divides both sides"
        )
    if shift:
        x = jnp.roll(x, (-shift, -shift), (-3, -2))
    return rearrange(x, "... (h p) (w q) c -> ... (h w) (p q) c", p=window, q=window)


def window_merge(
    windows: Float[Array, "*b n m c"], size: tuple[int, int], shift: int = 0
) -> Float[Array, "*b h w c"]:
    """Undo `window_partition`; ``size`` is the map's (height, width)."""
    window = round(windows.shape[-2] ** 0.5)
    x = rearrange(
        windows,
        "... (h w) (p q) c -> ... (h p) (w q) c",
        h=size[0] // window,
        p=window,
    )
    return jnp.roll(x, (shift, shift), (-3, -2)) if shift else x


@lru_cache(maxsize=64)
def shifted_window_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """True where two tokens of one shifted window were not neighbors before the shift.

    Along each axis the shifted map has three regions with borders at ``size - window`` and
    ``size - shift``; tokens of different regions were no neighbors (Swin Transformer, section 3.2).

    Returns:
        ``[n, m, m]`` bool; all False for ``shift`` 0.
    """
    if not shift:
        count = (height // window) * (width // window)
        return np.zeros((count, window**2, window**2), bool)

    def regions(size: int) -> np.ndarray:
        cell = np.arange(size)
        return (cell >= size - window).astype(int) + (cell >= size - shift)

    region = 3 * regions(height)[:, None] + regions(width)[None, :]
    tokens = rearrange(region, "(h p) (w q) -> (h w) (p q)", p=window, q=window)
    return tokens[:, :, None] != tokens[:, None, :]
