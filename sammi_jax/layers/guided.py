"""Linear maps of concatenated features and guidance, without concatenating them.

``W [x; g] = W_x x + W_g g``: guidance that many classes or pixels share is multiplied once instead
of once for each. The kernel is one parameter and is split where it is used.
"""

import jax.numpy as jnp
from flax import nnx

from sammi_jax.typing import Array, Float


def guided_linear(
    layer: nnx.Linear, x: Float[Array, "*b c"], guidance: Float[Array, "*g d"]
) -> Float[Array, "*o e"]:
    """``layer(concat(x, guidance))``, where ``guidance`` broadcasts against ``x``.

    Args:
        layer: kernel ``[c + d, e]``, the features' rows first.
        x: features.
        guidance: leading axes of size 1 are shared.
    """
    kernel, dim = layer.kernel[...], x.shape[-1]
    shared = jnp.matmul(guidance, kernel[dim:])
    if layer.bias is not None:
        shared = shared + jnp.broadcast_to(layer.bias[...], shared.shape)
    return jnp.matmul(x, kernel[:dim]) + shared
