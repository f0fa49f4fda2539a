"""Multi-head softmax attention with separate query, key, value and output projections.

On NVIDIA GPUs, in bfloat16 and without a mask, long sequences are left to cuDNN's fused kernel.
"""

import re

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.kernels.parts import serves
from sammi_jax.layers.basic import linear
from sammi_jax.typing import Array, Bool, Float

CUDNN_LENGTH = 128  # tokens; of fewer than these, scores cost little memory
MASKED = -1e30  # finite, so that a row with nothing to attend to gives no NaN


def dot_product_attention(
    query: Float[Array, "*b n d"],
    key: Float[Array, "*b m d"],
    value: Float[Array, "*b m e"],
    *,
    bias: Float[Array, "*bias n m"] | None = None,
    mask: Bool[Array, "*mask #n m"] | None = None,
) -> Float[Array, "*b n e"]:
    """Softmax attention scaled by ``1/sqrt(d)``, the softmax in float32.

    Args:
        query: heads are leading axes, as for ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        bias: added to the scaled scores.
        mask: True where attending is allowed; a row without any gives the plain mean of ``value``.
    """
    scores = jnp.einsum("...nd,...md->...nm", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(jnp.float32)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, scores.shape)
    if mask is not None:
        scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...nm,...me->...ne", weights, value)


def _cudnn_serves(query: Array, key: Array) -> bool:
    """Whether this process has GPUs, and cuDNN a fused kernel for these arrays on them.

    Asked before anything is lowered: JAX looks for cuDNN when it traces a call of it.
    """
    if not (serves(query) and serves(key)):
        return False
    if min(query.shape[-2], key.shape[-2]) < CUDNN_LENGTH:
        return False
    if query.shape[-1] > 128 or query.shape[-1] % 8 or jax.default_backend() != "gpu":
        return False
    device = jax.local_devices()[0]
    # ROCm's devices have names in the place of numbers; bfloat16 came with 8.0, the A100.
    number = re.fullmatch(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    return number is not None and int(number[1]) >= 8


def cudnn_attention(
    query: Float[Array, "*b n d"], key: Float[Array, "*b m d"], value: Float[Array, "*b m d"]
) -> Float[Array, "*b n d"]:
    """`dot_product_attention` by cuDNN; heads are the last leading axis."""
    lengths = query.shape[-2], key.shape[-2]

    def even(x: Array) -> Array:
        """Tokens before heads, filled up to an even number, which the gradient needs."""
        x = x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2)
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    arrays = [even(x) for x in (query, key, value)]
    counts = {}
    if any(length % 2 for length in lengths):
        batch = (arrays[0].shape[0],)
        names = ("query_seq_lengths", "key_value_seq_lengths")
        counts = {n: jnp.full(batch, x, jnp.int32) for n, x in zip(names, lengths, strict=True)}
    out = jax.nn.dot_product_attention(*arrays, **counts, implementation="cudnn")
    return out[:, : lengths[0]].swapaxes(1, 2).reshape(query.shape)


def split_heads(x: Float[Array, "*b n c"], num_heads: int) -> Float[Array, "*b h n d"]:
    """Channels as heads of ``d = c / num_heads``, which become a leading axis."""
    return rearrange(x, "... n (h d) -> ... h n d", h=num_heads)


def merge_heads(x: Float[Array, "*b h n d"]) -> Float[Array, "*b n c"]:
    """Undo `split_heads`."""
    return rearrange(x, "... h n d -> ... n (h d)")


class MultiHeadAttention(nnx.Module):
    """Projection to ``inner_dim`` (default ``dim``), attention in ``num_heads``, and back."""

    def __init__(self, dim: int, num_heads: int, *, inner_dim: int | None = None, rngs: nnx.Rngs):
        inner_dim = inner_dim or dim
        self.num_heads = num_heads
        self.query = linear(dim, inner_dim, rngs=rngs)
        self.key = linear(dim, inner_dim, rngs=rngs)
        self.value = linear(dim, inner_dim, rngs=rngs)
        self.out = linear(inner_dim, dim, rngs=rngs)

    def __call__(
        self,
        query: Float[Array, "*b n c"],
        key: Float[Array, "*b m c"],
        value: Float[Array, "*b m c"],
        mask: Bool[Array, "*mask #n m"] | None = None,
    ) -> Float[Array, "*b n c"]:
        """Attend; ``mask`` (True = may attend) broadcasts over batch and heads."""
        heads = (
            split_heads(self.query(query), self.num_heads),
            split_heads(self.key(key), self.num_heads),
            split_heads(self.value(value), self.num_heads),
        )
        if mask is None and _cudnn_serves(*heads[:2]):
            heads = jax.lax.platform_dependent(
                *heads, cuda=cudnn_attention, default=dot_product_attention
            )
        else:
            heads = dot_product_attention(*heads, mask=mask)
        return self.out(merge_heads(heads))
