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
    function: Callable[..., Array],
    xs: Sequence[Array],
    axes: Sequence[int],
    most: int,
    *,
    fixed: Sequence[Array] = (),
    recompute: bool = False,
) -> Array:
    """``function(*xs, *fixed)``, on a CPU for at most ``most`` slices along an axis at a time.

    So it is on other platforms within `cut_everywhere`. Its derivative is that of the whole, unless
    it recomputes: a loop that keeps what the backward pass needs would put it into stacks, which
    takes as much memory and more time.

    Args:
        function: treats the slices apart; its result has them along ``axes[0]``. What it closes
            over may have a derivative (parameters); integers and booleans belong in ``fixed``.
        xs: the arrays that have these slices.
        axes: along which axis each has them; not negative.
        most: slices in a piece; the largest divisor of their number that is not above it is taken.
        fixed: whole arrays without a derivative.
        recompute: whether the backward pass computes the function again, piece by piece as well.
    """
    if not all(isinstance(length, int) for x in xs for length in x.shape):
        return function(*xs, *fixed)  # exported for any number of classes: nothing divides it
    everywhere = _everywhere.get()
    count = xs[0].shape[axes[0]]
    size = max(n for n in range(1, most + 1) if count % n == 0)
    if size == count or xs[0].nbytes <= CACHE:
        return function(*xs, *fixed)

    def cut(x: Array, axis: int) -> Array:
        x = x.reshape(*x.shape[:axis], count // size, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis, 0)

    def join(x: Array, axis: int) -> Array:
        x = jnp.moveaxis(x, 0, axis)
        return x.reshape(*x.shape[:axis], count, *x.shape[axis + 2 :])

    # What the function closes over becomes arguments, since parameters have derivatives as well;
    # the converted function is one of fixed shapes.
    piece = jax.eval_shape(lambda: [x[0] for x in map(cut, xs, axes)])
    on_piece, piece_shared = jax.closure_convert(function, *piece, *fixed)
    on_whole, whole_shared = jax.closure_convert(function, *xs, *fixed)

    def whole(xs: Any, fixed: Any, shared: Any) -> Array:
        return on_whole(*xs, *fixed, *shared)

    def pieces(xs: Any, fixed: Any, shared: Any) -> Array:
        parts = tuple(map(cut, xs, axes))
        return join(jax.lax.map(lambda part: on_piece(*part, *fixed, *shared), parts), axes[0])

    @jax.custom_vjp
    def run(xs: Any, fixed: Any, whole_shared: Any, piece_shared: Any) -> Array:
        if everywhere:
            return pieces(xs, fixed, piece_shared)
        return jax.lax.platform_dependent(
            xs,
            fixed,
            whole_shared,
            piece_shared,
            cpu=lambda xs, fixed, _, shared: pieces(xs, fixed, shared),
            default=lambda xs, fixed, shared, _: whole(xs, fixed, shared),
        )

    def forward(xs: Any, fixed: Any, whole_shared: Any, piece_shared: Any) -> Any:
        saved = xs, fixed, whole_shared, piece_shared
        if recompute:
            return run(*saved), saved
        return jax.vjp(lambda xs, shared: whole(xs, fixed, shared), xs, whole_shared)

    # What is saved: xs, fixed, and the two lists of what is closed over.
    def backward(saved: Any, slope: Array) -> Any:
        if not recompute:
            of_xs, of_whole = saved(slope)
            return of_xs, None, of_whole, None
        of_xs, of_whole, of_piece = jax.lax.platform_dependent(
            saved, slope, cpu=pull_pieces, default=pull_whole
        )
        return of_xs, None, of_whole, of_piece

    def pull_whole(saved: Any, slope: Array) -> Any:
        xs, fixed, whole_shared, piece_shared = saved
        _, pull = jax.vjp(lambda xs, shared: whole(xs, fixed, shared), xs, whole_shared)
        return *pull(slope), _zeros(piece_shared)

    def pull_pieces(saved: Any, slope: Array) -> Any:
        xs, fixed, whole_shared, piece_shared = saved

        def step(total: Any, part: Any) -> Any:
            xs, slope = part
            _, pull = jax.vjp(lambda xs, shared: on_piece(*xs, *fixed, *shared), xs, piece_shared)
            of_xs, of_shared = pull(slope)
            return jax.tree.map(jnp.add, total, of_shared), of_xs

        parts = tuple(map(cut, xs, axes)), cut(slope, axes[0])
        of_shared, of_parts = jax.lax.scan(step, _zeros(piece_shared), parts)
        return tuple(map(join, of_parts, axes)), _zeros(whole_shared), of_shared

    run.defvjp(forward, backward)
    return run(tuple(xs), tuple(fixed), whole_shared, piece_shared)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)
