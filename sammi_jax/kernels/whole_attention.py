"""Softmax attention over long sequences on TPUs: JAX's Splash kernel.

It keeps no scores in memory. `jax.experimental.pallas.ops.tpu.splash_attention` wants queries and
keys that fill lanes of 128; zeros do not change their products.
"""

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    FullMask,
    MultiHeadMask,
    make_splash_mha_single_device,
)

from sammi_jax.kernels.parts import LANES
from sammi_jax.typing import Array, Float

QUERY_BLOCK = 512  # queries whose scores against all keys are held at once, without the kernel
_QUERIES, _KEYS = 512, 1024  # of a block: 95% of the matrix units' cycles on v5e


def fits(cells: int) -> bool:
    """Whether the kernel serves sequences of this length."""
    return cells % LANES == 0


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend_whole(
    query: Float[Array, "b n q e"],
    key: Float[Array, "b n k e"],
    value: Float[Array, "b n k d"],
    interpret: bool = False,
) -> Float[Array, "b n q d"]:
    """``softmax(q k) v``; its gradient is that of `attend_plainly`.

    Args:
        query: already scaled; heads are the second axis.
        key: see ``query``.
        value: see ``query``.
        interpret: run on any device, slowly.
    """
    heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
    sizes = BlockSizes(_largest(queries, _QUERIES), _largest(keys, _KEYS))
    mask = MultiHeadMask([FullMask((queries, keys))] * heads)
    kernel = make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    out = jnp.asarray(jax.vmap(kernel)(*map(_widened, (query, key, value))))
    return out[..., : value.shape[-1]]


def attend_plainly(
    query: Float[Array, "*b q e"], key: Float[Array, "*b k e"], value: Float[Array, "*b k d"]
) -> Float[Array, "*b q d"]:
    """`attend_whole` without a kernel, `QUERY_BLOCK` queries at a time."""

    def attend(queries: Array) -> Array:
        scores = jnp.einsum("...qe,...ke->...qk", queries, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("...qk,...kd->...qd", weights, value)

    length = query.shape[-2]
    size = max(n for n in range(1, QUERY_BLOCK + 1) if length % n == 0)
    if size == length:
        return attend(query)
    blocks = rearrange(query, "... (i q) e -> i ... q e", q=size)
    # The backward pass makes a block's scores again instead of keeping them all.
    return rearrange(jax.lax.map(jax.checkpoint(attend), blocks), "i ... q d -> ... (i q) d")


def _widened(x: Array) -> Array:
    return jnp.pad(x, ((0, 0),) * 3 + ((0, -x.shape[-1] % LANES),))


def _largest(length: int, block: int) -> int:
    """The largest multiple of a tile's lanes up to ``block`` that divides the length."""
    return next(n for n in range(block, 0, -LANES) if length % n == 0)


def _forward(query, key, value, interpret):
    return attend_whole(query, key, value, interpret), (query, key, value)


def _backward(interpret, inputs, gradient):
    del interpret
    return jax.vjp(attend_plainly, *inputs)[1](gradient)


attend_whole.defvjp(_forward, _backward)
