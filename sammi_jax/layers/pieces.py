"""Large arrays a few slices at a time, so that what is computed on the way stays in a CPU's cache.

The maps of 150 classes are 44 MB: each layer would write its result to memory and the next one read
it back. An accelerator wants long products instead, so there nothing is cut, but where memory is
short (`cut_everywhere`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from sammi_jax.typing import Array

CACHE = 2**21  # bytes of the first array up to which nothing is cut
_everywhere: ContextVar[bool] = ContextVar("everywhere", default=False)


@contextmanager
def cut_everywhere() -> Iterator[None]:
    """What is traced inside is cut on all platforms: less memory for the same values."""
    token = _everywhere.set(True)
    try:
        yield
    finally:
        _everywhere.reset(token)


def in_pieces(
    function: Callable[..., Array], xs: Sequence[Array], axes: Sequence[int], most: int
) -> Array:
    """``function(*xs)``, on a CPU for at most ``most`` slices along an axis at a time.

    So it is on other platforms within `cut_everywhere`.

    Its derivative is that of the whole: a loop would keep what the backward pass needs in stacks,
    which takes as much memory and more time.

    Args:
        function: treats the slices apart; its result has them along ``axes[0]``.
        xs: the arrays that have these slices.
        axes: along which axis each has them; not negative.
        most: slices in a piece; the largest divisor of their number that is not above it is taken.
    """
    if not all(isinstance(length, int) for x in xs for length in x.shape):
        return function(*xs)  # exported for any number of classes: nothing divides it
    everywhere = _everywhere.get()
    count = xs[0].shape[axes[0]]
    size = max(n for n in range(1, most + 1) if count % n == 0)
    if size == count or xs[0].nbytes <= CACHE:
        return function(*xs)

    def cut(x: Array, axis: int) -> Array:
        x = x.reshape(*x.shape[:axis], count // size, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    # What the function closes over becomes arguments, since parameters have derivatives as well;
    # the converted function is one of fixed shapes.
    piece = jax.eval_shape(lambda: [x[0] for x in map(cut, xs, axes)])
    on_piece, piece_shared = jax.closure_convert(function, *piece)
    on_whole, whole_shared = jax.closure_convert(function, *xs)

    def whole(xs: Any, shared: Any) -> Array:
        return on_whole(*xs, *shared)

    def pieces(xs: Any, shared: Any) -> Array:
        out = jax.lax.map(lambda piece: on_piece(*piece, *shared), tuple(map(cut, xs, axes)))
        out = jnp.moveaxis(out, 0, axes[0])
        return out.reshape(*out.shape[: axes[0]], count, *out.shape[axes[0] + 2 :])

    @jax.custom_vjp
    def run(xs: Any, whole_shared: Any, piece_shared: Any) -> Array:
        if everywhere:
            return pieces(xs, piece_shared)
        return jax.lax.platform_dependent(
            xs,
            whole_shared,
            piece_shared,
            cpu=lambda xs, _, shared: pieces(xs, shared),
            default=lambda xs, shared, _: whole(xs, shared),
        )

    def forward(xs: Any, whole_shared: Any, piece_shared: Any) -> Any:
        del piece_shared
        return jax.vjp(whole, xs, whole_shared)

    run.defvjp(forward, lambda pull, slope: (*pull(slope), None))
    return run(tuple(xs), whole_shared, piece_shared)
