"""A Swin block of the aggregation, from its first norm to its second residual, in on-chip memory.

Kernels for TPUs, forward and backward; the backward one makes the inner values again from the
block's input. Heads have few channels, so that a product for each would leave most of the matrix
unit idle: keys and values of all heads are stacked, each with zeros in the channels of the others,
and one product gives the scores of all heads side by side.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sammi_jax.kernels.parts import (
    LANES,
    ROWS,
    VMEM,
    dot,
    dot_t,
    f32,
    normalize,
    normalize_backward,
    row_sum,
    t_dot,
)
from sammi_jax.typing import Array, Float

_STEP = 3  # windows at a time, if they divide the classes
# Abramowitz and Stegun 7.1.26: erf to 1.5e-7.
_ERF_SCALE = 0.3275911
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


class Weights(NamedTuple):
    """A block's parameters; vectors are ``[1, c]``, and ``qkv`` has no bias for queries and keys.

    These are part of the guidance's share of queries and keys.
    """

    norm1_scale: Array
    norm1_bias: Array
    qkv: Array  # [c, 3 c]
    value_bias: Array
    out: Array
    out_bias: Array
    norm2_scale: Array
    norm2_bias: Array
    fc1: Array
    fc1_bias: Array
    fc2: Array
    fc2_bias: Array


def fits(tokens: int, dim: int) -> bool:
    """Whether the kernels serve windows of so many tokens and this many channels."""
    return tokens % ROWS == 0 and dim % LANES == 0


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def swin_block(
    x: Float[Array, "b t n m c"],
    query_guidance: Float[Array, "b n m c"],
    key_guidance: Float[Array, "b n m c"],
    bias: Float[Array, "n m m"] | None,
    weights: Weights,
    num_heads: int,
    interpret: bool = False,
) -> Float[Array, "b t n m c"]:
    """One block of `sammi_jax.layers.swin` on the ``n`` windows of each class's map.

    Args:
        x: tokens of each window.
        query_guidance: what the guidance adds to queries, with their bias.
        key_guidance: the same for keys.
        bias: added to the scores of each window; it has no gradient.
        weights: of the block.
        num_heads: heads.
        interpret: run on any device, slowly.
    """
    tokens, guides = _specs(x)
    operands, specs = _constants(x, bias, num_heads)
    return pl.pallas_call(
        partial(_forward_kernel, heads=num_heads, biased=bias is not None),
        grid=_grid(x),
        in_specs=[tokens, guides, guides, *specs, *map(_whole, weights)],
        out_specs=tokens,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="swin_block",
        interpret=interpret,
    )(x, query_guidance, key_guidance, *operands, *weights)


def _forward(x, query_guidance, key_guidance, bias, weights, num_heads, interpret):
    inputs = (x, query_guidance, key_guidance, bias, weights)
    return swin_block(*inputs, num_heads, interpret), inputs


def _backward(num_heads, interpret, inputs, gradient):
    x, query_guidance, key_guidance, bias, weights = inputs
    tokens, guides = _specs(x)
    operands, specs = _constants(x, bias, num_heads)
    summed = [jax.ShapeDtypeStruct(w.shape, jnp.float32) for w in weights]
    guide = jax.ShapeDtypeStruct(query_guidance.shape, jnp.float32)
    dx, dq, dk, *dw = pl.pallas_call(
        partial(_backward_kernel, heads=num_heads, biased=bias is not None),
        grid=_grid(x),
        in_specs=[tokens, tokens, guides, guides, *specs, *map(_whole, weights)],
        out_specs=[tokens, guides, guides, *map(_whole, weights)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), guide, guide, *summed],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="swin_block_backward",
        interpret=interpret,
    )(x, gradient, query_guidance, key_guidance, *operands, *weights)
    like = lambda a, b: a.astype(b.dtype)  # noqa: E731
    dbias = None if bias is None else jnp.zeros_like(bias)
    return (
        dx,
        like(dq, query_guidance),
        like(dk, key_guidance),
        dbias,
        Weights(*map(like, dw, weights)),
    )


swin_block.defvjp(_forward, _backward)


def _step(classes: int) -> int:
    return next(n for n in range(_STEP, 0, -1) if classes % n == 0)


def _grid(x: Array) -> tuple[int, int, int]:
    """Images, windows, and classes last, so that guidance is read once for all of them."""
    batch, classes, windows = x.shape[:3]
    return batch, windows, classes // _step(classes)


def _specs(x: Array) -> tuple[pl.BlockSpec, pl.BlockSpec]:
    """Blocks of tokens and of guidance."""
    batch, classes, windows, tokens, dim = x.shape
    del batch, windows
    return (
        pl.BlockSpec((1, _step(classes), 1, tokens, dim), lambda b, n, t: (b, t, n, 0, 0)),
        pl.BlockSpec((1, 1, tokens, dim), lambda b, n, t: (b, n, 0, 0)),
    )


def _whole(array: Any) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda b, n, t: (0,) * array.ndim)


def _constants(x: Array, bias: Array | None, heads: int) -> tuple[list[Array], list[pl.BlockSpec]]:
    """Ones in each head's channels, stacked as keys are; the bias beside itself for each head."""
    tokens, dim = x.shape[3:]
    ones = jnp.asarray(np.kron(np.eye(heads), np.ones((tokens, dim // heads))), x.dtype)
    if bias is None:
        return [ones], [_whole(ones)]
    wide = jnp.tile(bias, (1, 1, heads))
    spec = pl.BlockSpec((1, tokens, heads * tokens), lambda b, n, t: (n, 0, 0))
    return [ones, wide], [_whole(ones), spec]


def _forward_kernel(x, gq, gk, ones, *rest, heads, biased):
    bias, (*weights, out) = (rest[0], rest[1:]) if biased else (None, rest)
    w = Weights(*(ref[...] for ref in weights))
    block = _Block(x, gq, gk, bias, ones, w, heads)
    out[0, :, 0] = block.y.reshape(out.shape[1], *out.shape[3:]).astype(out.dtype)


class _Block:
    """The inner values of a block; in float32 but for the operands of products."""

    def __init__(self, x, gq, gk, bias, ones, w: Weights, heads: int):
        self.dtype = x.dtype
        windows, tokens, dim = x.shape[1], x.shape[3], x.shape[4]
        self.rows = [slice(i * tokens, (i + 1) * tokens) for i in range(windows)]
        self.x = x[0, :, 0].reshape(windows * tokens, dim).astype(jnp.float32)
        self.hat1, self.inverse1 = normalize(self.x)
        self.normed1 = self._low(self.hat1 * f32(w.norm1_scale) + f32(w.norm1_bias))
        qkv = dot(self.normed1, w.qkv)
        self.scale = (dim // heads) ** -0.5
        gq, gk = f32(gq[0, 0]), f32(gk[0, 0])
        self.attention = []
        for row in self.rows:
            q, k, v = (qkv[row, i * dim : (i + 1) * dim] for i in range(3))
            q, k, v = (q + gq) * self.scale, k + gk, v + f32(w.value_bias)
            scores = None if bias is None else bias[0]
            self.attention.append(_Attention(self._low(q), k, v, scores, ones[...], heads))
        self.heads = self._low(jnp.concatenate([a.out for a in self.attention], axis=0))
        self.x1 = self.x + dot(self.heads, w.out) + f32(w.out_bias)
        self.hat2, self.inverse2 = normalize(self.x1)
        self.normed2 = self._low(self.hat2 * f32(w.norm2_scale) + f32(w.norm2_bias))
        self.hidden = dot(self.normed2, w.fc1) + f32(w.fc1_bias)
        self.normal, self.density = _normal(self.hidden)
        self.activated = self._low(self.hidden * self.normal)
        self.y = self.x1 + dot(self.activated, w.fc2) + f32(w.fc2_bias)

    def _low(self, x):
        return x.astype(self.dtype)


class _Attention:
    """Attention in a window; its inner values."""

    def __init__(self, q, k, v, bias, ones, heads):
        self.q, self.count, (tokens, dim) = q, heads, q.shape
        lane = jax.lax.broadcasted_iota(jnp.int32, (tokens, dim), 1)
        width = dim // heads
        self.own = [(lane >= h * width) & (lane < (h + 1) * width) for h in range(heads)]
        self.k, self.v = self._stacked(k), self._stacked(v)
        scores = dot_t(q, self.k)
        if bias is not None:
            scores = scores + bias
        largest = [self._largest(scores, h) for h in range(heads)]
        self.weights = jnp.exp(scores - self._beside(largest, tokens))  # not yet divided by the sum
        low = self.weights.astype(q.dtype)
        self.inverse = 1.0 / dot(low, ones)  # of the sums, in each head's channels
        self.out = dot(low, self.v) * self.inverse

    def _stacked(self, x):
        """Copies of ``x`` below each other, each with the channels of one head only."""
        parts = [jnp.where(own, x, 0.0) for own in self.own]
        return jnp.concatenate(parts, axis=0).astype(self.q.dtype)

    def folded(self, x):
        """The channels that `_stacked` keeps."""
        tokens = self.q.shape[0]
        parts = [x[h * tokens : (h + 1) * tokens] for h in range(self.count)]
        return sum(jnp.where(own, part, 0.0) for own, part in zip(self.own, parts, strict=True))

    def _largest(self, scores, head):
        """The largest score of each row among those of a head, ``[m, 1]``."""
        tokens, end = scores.shape[0], scores.shape[1]
        start, stop = head * tokens, (head + 1) * tokens
        first, last = start // LANES * LANES, min(-(-stop // LANES) * LANES, end)
        part = scores[:, first:last]
        lane = jax.lax.broadcasted_iota(jnp.int32, part.shape, 1) + first
        part = jnp.where((lane >= start) & (lane < stop), part, -jnp.inf)
        return jnp.max(part, axis=1, keepdims=True)

    def _beside(self, columns, tokens):
        """One column ``[m, 1]`` a head, repeated over the scores of that head."""
        parts, end = [], self.count * tokens
        for first in range(0, end, LANES):
            last = min(first + LANES, end)
            heads = range(first // tokens, (last - 1) // tokens + 1)
            lane = jax.lax.broadcasted_iota(jnp.int32, (tokens, last - first), 1) + first
            part = jnp.broadcast_to(columns[heads[-1]], lane.shape)
            for head in reversed(heads[:-1]):
                part = jnp.where(lane < (head + 1) * tokens, columns[head], part)
            parts.append(part)
        return jnp.concatenate(parts, axis=1)

    def backward(self, gradient):
        """Gradients of queries (as scaled), keys and values for that of ``out``."""
        tokens, dim = self.q.shape
        width = dim // self.count
        column = lambda h: self.inverse[:, h * width : h * width + 1]  # noqa: E731
        weights = self.weights * self._beside([column(h) for h in range(self.count)], tokens)
        products = gradient * self.out
        sums = [jnp.sum(jnp.where(own, products, 0.0), axis=1, keepdims=True) for own in self.own]
        low = gradient.astype(self.q.dtype)
        scores = weights * (dot_t(low, self.v) - self._beside(sums, tokens))
        scores, weights = scores.astype(low.dtype), weights.astype(low.dtype)
        dv = self.folded(t_dot(weights, low))
        return dot(scores, self.k), self.folded(t_dot(scores, self.q)), dv


def _backward_kernel(x, dy, gq, gk, ones, *rest, heads, biased):
    bias, rest = (rest[0], rest[1:]) if biased else (None, rest)
    count = len(Weights._fields)
    w = Weights(*(ref[...] for ref in rest[:count]))
    dx, dgq, dgk, *dw = rest[count:]
    dw = Weights(*dw)
    block = _Block(x, gq, gk, bias, ones, w, heads)
    first_class = pl.program_id(2) == 0

    @pl.when(first_class)
    def _():
        dgq[...] = jnp.zeros_like(dgq)
        dgk[...] = jnp.zeros_like(dgk)

    @pl.when(first_class & (pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        for ref in dw:
            ref[...] = jnp.zeros_like(ref)

    low = lambda a: a.astype(x.dtype)  # noqa: E731
    gradient = dy[0, :, 0].reshape(block.x.shape)
    dw.fc2[...] += t_dot(block.activated, gradient)
    dw.fc2_bias[...] += row_sum(f32(gradient))
    hidden = dot_t(gradient, w.fc2) * (block.normal + block.hidden * block.density)
    dw.fc1_bias[...] += row_sum(hidden)
    hidden = low(hidden)
    dw.fc1[...] += t_dot(block.normed2, hidden)
    normed2 = dot_t(hidden, w.fc1)
    dw.norm2_scale[...] += row_sum(normed2 * block.hat2)
    dw.norm2_bias[...] += row_sum(normed2)
    gradient = f32(gradient) + normalize_backward(
        normed2 * f32(w.norm2_scale), block.hat2, block.inverse2
    )
    dw.out_bias[...] += row_sum(gradient)
    dw.out[...] += t_dot(block.heads, low(gradient))
    merged = dot_t(low(gradient), w.out)
    parts = [a.backward(merged[row]) for a, row in zip(block.attention, block.rows, strict=True)]
    dgq[0, 0] += sum(q * block.scale for q, _, _ in parts)
    dgk[0, 0] += sum(k for _, k, _ in parts)
    q, k, v = (jnp.concatenate(part, axis=0) for part in zip(*parts, strict=True))
    dw.value_bias[...] += row_sum(v)
    qkv = low(jnp.concatenate([q * block.scale, k, v], axis=1))
    dw.qkv[...] += t_dot(block.normed1, qkv)
    normed1 = dot_t(qkv, w.qkv)
    dw.norm1_scale[...] += row_sum(normed1 * block.hat1)
    dw.norm1_bias[...] += row_sum(normed1)
    gradient = gradient + normalize_backward(
        normed1 * f32(w.norm1_scale), block.hat1, block.inverse1
    )
    dx[0, :, 0] = low(gradient).reshape(dx.shape[1], *dx.shape[3:])


def _normal(x):
    """The normal distribution's cumulative function (GELU is ``x`` times it) and density."""
    bell = jnp.exp(-0.5 * x * x)
    t = 1.0 / (1.0 + _ERF_SCALE * 2**-0.5 * jnp.abs(x))
    tail = jnp.zeros_like(x)
    for coefficient in reversed(_ERF):
        tail = (tail + coefficient) * t
    tail = 0.5 * tail * bell
    return jnp.where(x < 0, tail, 1.0 - tail), (2 * np.pi) ** -0.5 * bell
