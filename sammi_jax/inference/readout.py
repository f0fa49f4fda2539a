"""From class maps on the canvas to the best class of every pixel, in bounded memory.

Scores of all classes at an image's size would not fit: 12 million pixels and 150 classes are 7 GB.
So classes are read out in chunks, of which the best so far is kept, and large images in stripes of
columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sammi_jax.ops.resize import bilinear_taps
from sammi_jax.typing import Array, Bool, Float, Int, NpArray

STRIPE_PIXELS = 2**20  # pixels whose scores are in memory at once, for one chunk of classes
Maps = TypeVar("Maps")  # a pytree of class maps on the canvas
_BUCKET = 256  # sides are padded to a multiple, so that few programs are compiled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PixelTaps:
    """Between which rows and columns of a map each pixel lies (`ops.resize.bilinear_taps`)."""

    rows: Any  # [h, 2] int32
    row_weights: Any  # [h] float32, of the second row
    columns: Any  # [w, 2] int32
    column_weights: Any  # [w] float32


def interpolate(maps: Float[Array, "t h w"], taps: PixelTaps) -> Float[Array, "t h2 w2"]:
    """Maps at the pixels, bilinear.

    A CPU picks columns one by one, rows as a whole. So columns come first, on the rows of the map,
    and in a loop of their own, or a compiler would do it again for every row of pixels.
    """

    def on_columns(maps: Array) -> Array:
        return _between(maps, taps.columns, taps.column_weights, axis=2)

    def each_on_columns(maps: Array) -> Array:
        return jax.lax.map(lambda each: on_columns(each[None])[0], maps)

    maps = jax.lax.platform_dependent(maps, cpu=each_on_columns, default=on_columns)
    return _between(maps, taps.rows, taps.row_weights, axis=1)


def _between(maps: Array, taps: Array, weights: Array, axis: int) -> Array:
    shape = [1, 1, 1]
    shape[axis] = -1
    weights = weights.reshape(shape)
    first, second = (jnp.take(maps, taps[:, i], axis=axis) for i in (0, 1))
    return first * (1 - weights) + second * weights


def best_class(
    canvas_maps: Callable[[Int[Array, " k"]], Maps],
    on_pixels: Callable[[Maps], Float[Array, "t h w"]],
    mask: Bool[Array, " t"],
    chunk: int,
    shape: tuple[int, int],
) -> tuple[Float[Array, "h w"], Array]:
    """The best score of every pixel and its class; of equal scores the first class wins.

    Args:
        canvas_maps: makes the maps of these classes, in any pytree.
        on_pixels: brings these to the pixels.
        mask: which classes can win; the others' maps are not made.
        chunk: classes whose maps are in memory at once.
        shape: (height, width) of the pixels.

    Returns:
        The score ``[h, w]`` and the class, int32 ``[h, w]``.
    """
    num_classes = mask.shape[0]
    chunk = min(chunk, num_classes)
    order = jnp.argsort(~mask, stable=True)  # those that can win first, in their order
    num_chunks = jnp.maximum(-(-jnp.sum(mask) // chunk), 1)

    def classes_of(step: Array) -> Array:
        start = jnp.minimum(step * chunk, num_classes - chunk)  # the last chunk may overlap another
        return jax.lax.dynamic_slice_in_dim(order, start, chunk)

    # A chunk's maps are made one step before they are read. If both were in one step, a compiler
    # could make each value of the maps again for every pixel that it reaches: on a CPU, 5 to 30
    # times the time.
    def step(number: Array, carry: tuple[Array, Array, Maps]) -> tuple[Array, Array, Maps]:
        best, classes, maps = carry
        these = classes_of(number)
        values = jnp.where(mask[these][:, None, None], on_pixels(maps), -jnp.inf)
        index, score = jnp.argmax(values, axis=0), jnp.max(values, axis=0)
        better = score > best
        found = these[index].astype(jnp.int32)
        following = canvas_maps(classes_of(number + 1))
        return jnp.where(better, score, best), jnp.where(better, found, classes), following

    nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    first = canvas_maps(classes_of(jnp.asarray(0)))
    best, classes, _ = jax.lax.fori_loop(0, num_chunks, step, (*nothing, first))
    return best, classes


def read_stripes(
    read: Callable[[PixelTaps], tuple[NpArray, NpArray]],
    side: tuple[int, int],
    size: tuple[int, int],
) -> tuple[Float[NpArray, "h w"], Int[NpArray, "h w"]]:
    """The best score and class of every pixel of an image, stripe by stripe.

    Args:
        read: taps -> (score, class) of a stripe.
        side: (height, width) of the maps.
        size: (height, width) of the image.

    Returns:
        float32 ``[h, w]`` and int32 ``[h, w]``.
    """
    height, width = size
    padded_height = _padded(height)
    stripe = min(_padded(width), max(_BUCKET, STRIPE_PIXELS // padded_height // _BUCKET * _BUCKET))
    rows = bilinear_taps(side[0], height, padded_height)
    columns, column_weights = bilinear_taps(side[1], width, -(-width // stripe) * stripe)
    scores, classes = np.empty(size, np.float32), np.empty(size, np.int32)
    for start in range(0, width, stripe):
        part = slice(start, start + stripe)
        score, index = read(PixelTaps(*rows, columns[part], column_weights[part]))
        count = min(stripe, width - start)
        scores[:, part] = score[:height, :count]
        classes[:, part] = index[:height, :count]
    return scores, classes


def _padded(length: int) -> int:
    """Up to eight steps a power of two, so that few shapes occur however sizes vary."""
    step = max(_BUCKET, 2 ** max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step
