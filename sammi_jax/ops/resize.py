"""Resampling with PyTorch's conventions, as two small matrix products.

`jax.image.resize` antialiases when it shrinks, knows no ``align_corners=True`` and its cubic
kernel uses a = -0.5; PyTorch's ``interpolate`` does none of these. Every checkpoint that this
package reads was trained with PyTorch's rules (torch/nn/functional.py ``interpolate``).
"""

from functools import lru_cache
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sammi_jax.typing import Array, Float

Method = Literal["bilinear", "bicubic"]

_CUBIC_A = -0.75  # PyTorch's coefficient; jax.image uses -0.5


@lru_cache(maxsize=256)
def resize_matrix(
    in_size: int, out_size: int, method: Method = "bilinear", align_corners: bool = False
) -> np.ndarray:
    """Weights ``[out_size, in_size]`` (float32) that resample one axis, never antialiased.

    Rows sum to one; taps outside the input are clamped to its border.
    """
    out = np.arange(out_size, dtype=np.float64)
    if align_corners:
        center = out * (in_size - 1) / max(out_size - 1, 1)
    else:
        center = (out + 0.5) * in_size / out_size - 0.5
        if method == "bilinear":
            center = np.maximum(center, 0.0)
    left = np.floor(center)
    if method == "bilinear":
        taps = (0, 1)
        weights = np.stack([1.0 - (center - left), center - left], axis=1)
    else:
        taps = (-1, 0, 1, 2)
        weights = np.stack([_cubic(center - (left + tap)) for tap in taps], axis=1)
    matrix = np.zeros((out_size, in_size))
    for column, tap in enumerate(taps):
        index = np.clip(left + tap, 0, in_size - 1).astype(int)
        np.add.at(matrix, (np.arange(out_size), index), weights[:, column])
    return matrix.astype(np.float32)


def bilinear_taps(in_size: int, out_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """``resize_matrix(in_size, out_size)`` as indices and weights, padded to a static length.

    Returns:
        int32 ``[length, 2]``, the two inputs of each output, and float32 ``[length]``, the weight
        of the second. Outputs from ``out_size`` on are padding: they take the last input.
    """
    center = np.maximum((np.arange(out_size) + 0.5) * in_size / out_size - 0.5, 0.0)
    left = np.floor(center)
    taps = np.full((length, 2), in_size - 1, np.int32)
    taps[:out_size] = np.clip(left[:, None] + (0, 1), 0, in_size - 1)
    weights = np.zeros(length, np.float32)
    weights[:out_size] = center - left
    return taps, weights


def between_rows(
    values: np.ndarray, taps: np.ndarray, weights: np.ndarray, outside: Any = None
) -> np.ndarray:
    """Rows of a host array interpolated at the taps of `bilinear_taps`, float32.

    Args:
        values: ``[h, ...]``.
        taps: int ``[n, 2]``.
        weights: float32 ``[n]``, of the second row.
        outside: what rows from ``h`` on hold; taps may lead there where it is given.
    """
    shape = (-1, *[1] * (values.ndim - 1))

    def row(index: np.ndarray) -> np.ndarray:
        if outside is None:
            return values[index].astype(np.float32)
        inside = (index < len(values)).reshape(shape)
        return np.where(inside, values[np.minimum(index, len(values) - 1)], np.float32(outside))

    weights = weights.reshape(shape)
    return row(taps[:, 0]) * (1 - weights) + row(taps[:, 1]) * weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1
    far = ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize(
    image: Float[Array, "*b h w c"],
    size: tuple[int, int],
    method: Method = "bilinear",
    align_corners: bool = False,
) -> Float[Array, "*b h2 w2 c"]:
    """Resample a channels-last image to ``size`` (height, width) as PyTorch's ``interpolate``.

    Example:
        >>> resize(jnp.arange(2.0).reshape(2, 1, 1), (4, 1))[:, 0, 0]
        Array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    height, width = image.shape[-3:-1]
    if (height, width) == size:
        return image
    rows = jnp.asarray(resize_matrix(height, size[0], method, align_corners), image.dtype)
    columns = jnp.asarray(resize_matrix(width, size[1], method, align_corners), image.dtype)
    image = jnp.einsum("oh,...hwc->...owc", rows, image)
    return jnp.einsum("ow,...hwc->...hoc", columns, image)
