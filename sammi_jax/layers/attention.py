"""Multi-head softmax attention with separate query, key, value and output projections."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.layers.basic import linear
from sammi_jax.typing import Array, Bool, Float

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
        heads = dot_product_attention(
            split_heads(self.query(query), self.num_heads),
            split_heads(self.key(key), self.num_heads),
            split_heads(self.value(value), self.num_heads),
            mask=mask,
        )
        return self.out(merge_heads(heads))
