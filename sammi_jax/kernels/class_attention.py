"""The class part of an aggregation layer, from its first norm to its second residual, on TPUs.

Kernels, forward and backward, for attention with the feature map ``elu + 1``; the backward one
makes the inner values again from the input. At each location the sum over classes of keys times
values is one product for all heads, of which then only the blocks within a head are kept.
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

EPS = 1e-6  # added to the sum of a query's weights


class Weights(NamedTuple):
    """The parameters; vectors are ``[1, c]``, and ``qkv`` has no bias for queries and keys."""

    norm1_scale: Array
    norm1_bias: Array
    qkv: Array  # [c, 3 c]
    value_bias: Array
    norm2_scale: Array
    norm2_bias: Array
    fc1: Array
    fc1_bias: Array
    fc2: Array
    fc2_bias: Array


class Shared(NamedTuple):
    """What an image's locations share.

    Attributes:
        query: what the texts add to queries, with their bias.
        key: the same for keys.
        mask: 1 for classes that are present, else 0; in every channel.
        padding: sum over padding slots of keys times values, zero outside the heads' blocks.
        padding_keys: sum over padding slots of keys, repeated over the columns of their heads.
    """

    query: Float[Array, "b t c"]
    key: Float[Array, "b t c"]
    mask: Float[Array, "b t c"]
    padding: Float[Array, "b c c"]
    padding_keys: Float[Array, "b c c"]


def fits(dim: int) -> bool:
    """Whether the kernels serve this many channels."""
    return dim % LANES == 0


def head_blocks(dim: int, num_heads: int) -> np.ndarray:
    """Ones where row and column belong to one head, ``[c, c]``."""
    width = dim // num_heads
    return np.kron(np.eye(num_heads), np.ones((width, width))).astype(np.float32)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def aggregate_classes(
    x: Float[Array, "b l t c"],
    shared: Shared,
    weights: Weights,
    num_heads: int,
    interpret: bool = False,
) -> Float[Array, "b l t c"]:
    """Attention over ``t`` at each location, and the MLP, each with its residual.

    Args:
        x: classes at each location; their number is a multiple of `parts.ROWS`.
        shared: of each image's locations; its mask has no gradient.
        weights: of the layer.
        num_heads: heads.
        interpret: run on any device, slowly.
    """
    blocks = jnp.asarray(head_blocks(x.shape[-1], num_heads))
    return pl.pallas_call(
        _forward_kernel,
        grid=x.shape[:2],
        in_specs=[_tokens(x), *map(_of_image, shared), _whole(blocks), *map(_whole, weights)],
        out_specs=_tokens(x),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="class_attention",
        interpret=interpret,
    )(x, *shared, blocks, *weights)


def _forward(x, shared, weights, num_heads, interpret):
    return aggregate_classes(x, shared, weights, num_heads, interpret), (x, shared, weights)


def _backward(num_heads, interpret, inputs, gradient):
    x, shared, weights = inputs
    blocks = jnp.asarray(head_blocks(x.shape[-1], num_heads))
    full = lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32)  # noqa: E731
    summed = [shared.query, shared.key, shared.padding, shared.padding_keys]
    dx, dq, dk, dpadding, dkeys, *dw = pl.pallas_call(
        _backward_kernel,
        grid=x.shape[:2],
        in_specs=[
            *[_tokens(x)] * 2,
            *map(_of_image, shared),
            _whole(blocks),
            *map(_whole, weights),
        ],
        out_specs=[_tokens(x), *map(_of_image, summed), *map(_whole, weights)],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *map(full, summed),
            *map(full, weights),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="class_attention_backward",
        interpret=interpret,
    )(x, gradient, *shared, blocks, *weights)
    like = lambda a, b: a.astype(b.dtype)  # noqa: E731
    dshared = Shared(dq, dk, jnp.zeros_like(shared.mask), dpadding, dkeys)
    return dx, Shared(*map(like, dshared, shared)), Weights(*map(like, dw, weights))


aggregate_classes.defvjp(_forward, _backward)


def _tokens(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, i: (b, i, 0, 0))


def _of_image(array: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, *array.shape[1:]), lambda b, i: (b, 0, 0))


def _whole(array: Any) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda b, i: (0, 0))


def _forward_kernel(x, query, key, mask, padding, padding_keys, blocks, *rest):
    *weights, out = rest
    shared = Shared(*(ref[0] for ref in (query, key, mask, padding, padding_keys)))
    layer = _Layer(x[0, 0], shared, blocks[...], Weights(*(ref[...] for ref in weights)))
    out[0, 0] = layer.y.astype(out.dtype)


class _Layer:
    """The inner values at a location; in float32 but for the operands of products."""

    def __init__(self, x, shared: Shared, blocks, w: Weights):
        low = lambda a: a.astype(x.dtype)  # noqa: E731
        dim = x.shape[1]
        self.x = f32(x)
        self.hat1, self.inverse1 = normalize(self.x)
        self.normed1 = low(self.hat1 * f32(w.norm1_scale) + f32(w.norm1_bias))
        qkv = dot(self.normed1, w.qkv)
        query, key = qkv[:, :dim] + f32(shared.query), qkv[:, dim : 2 * dim] + f32(shared.key)
        mask = f32(shared.mask)
        query, self.query_slope = _feature(query)
        key, key_slope = _feature(key)
        self.key_slope = key_slope * mask
        self.q, self.k = low(query), low(key * mask)
        self.v = low(qkv[:, 2 * dim :] + f32(w.value_bias))
        self.ones = jnp.ones_like(self.v)
        self.sums = low(t_dot(self.k, self.v) * blocks + f32(shared.padding))
        self.key_sums = low(t_dot(self.k, self.ones) * blocks + f32(shared.padding_keys))
        self.inverse = 1.0 / (dot(self.q, self.key_sums) + EPS)
        self.out = dot(self.q, self.sums) * self.inverse
        self.x1 = self.x + self.out
        self.hat2, self.inverse2 = normalize(self.x1)
        self.normed2 = low(self.hat2 * f32(w.norm2_scale) + f32(w.norm2_bias))
        self.hidden = jnp.maximum(dot(self.normed2, w.fc1) + f32(w.fc1_bias), 0.0)
        self.activated = low(self.hidden)
        self.y = self.x1 + dot(self.activated, w.fc2) + f32(w.fc2_bias)


def _feature(x):
    """``elu(x) + 1`` and its derivative."""
    below = jnp.exp(jnp.minimum(x, 0.0))
    return jnp.where(x > 0, x + 1.0, below), below


def _backward_kernel(x, dy, query, key, mask, padding, padding_keys, blocks, *rest):
    count = len(Weights._fields)
    w = Weights(*(ref[...] for ref in rest[:count]))
    dx, dquery, dkey, dpadding, dkeys, *dw = rest[count:]
    dw = Weights(*dw)
    shared = Shared(*(ref[0] for ref in (query, key, mask, padding, padding_keys)))
    blocks = blocks[...]
    layer = _Layer(x[0, 0], shared, blocks, w)
    first = pl.program_id(1) == 0

    @pl.when(first)
    def _():
        for ref in (dquery, dkey, dpadding, dkeys):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(first & (pl.program_id(0) == 0))
    def _():
        for ref in dw:
            ref[...] = jnp.zeros_like(ref)

    low = lambda a: a.astype(x.dtype)  # noqa: E731
    gradient = dy[0, 0]
    dw.fc2[...] += t_dot(layer.activated, gradient)
    dw.fc2_bias[...] += row_sum(f32(gradient))
    hidden = jnp.where(layer.hidden > 0, dot_t(gradient, w.fc2), 0.0)
    dw.fc1_bias[...] += row_sum(hidden)
    hidden = low(hidden)
    dw.fc1[...] += t_dot(layer.normed2, hidden)
    normed2 = dot_t(hidden, w.fc1)
    dw.norm2_scale[...] += row_sum(normed2 * layer.hat2)
    dw.norm2_bias[...] += row_sum(normed2)
    gradient = f32(gradient) + normalize_backward(
        normed2 * f32(w.norm2_scale), layer.hat2, layer.inverse2
    )
    above = low(gradient * layer.inverse)
    below = low(-gradient * layer.out * layer.inverse)
    dsums, dkey_sums = t_dot(layer.q, above), t_dot(layer.q, below)
    dpadding[0] += dsums
    dkeys[0] += dkey_sums
    dsums, dkey_sums = low(dsums * blocks), low(dkey_sums * blocks)
    q = (dot_t(above, layer.sums) + dot_t(below, layer.key_sums)) * layer.query_slope
    k = (dot_t(layer.v, dsums) + dot_t(layer.ones, dkey_sums)) * layer.key_slope
    v = dot(layer.k, dsums)
    dquery[0] += q
    dkey[0] += k
    dw.value_bias[...] += row_sum(v)
    qkv = low(jnp.concatenate([q, k, v], axis=1))
    dw.qkv[...] += t_dot(layer.normed1, qkv)
    normed1 = dot_t(qkv, w.qkv)
    dw.norm1_scale[...] += row_sum(normed1 * layer.hat1)
    dw.norm1_bias[...] += row_sum(normed1)
    gradient = gradient + normalize_backward(
        normed1 * f32(w.norm1_scale), layer.hat1, layer.inverse1
    )
    dx[0, 0] = low(gradient)
