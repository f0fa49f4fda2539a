"""A linear map of concatenated features and guidance, without the concatenation."""

import jax.numpy as jnp
from flax import nnx

from sammi_jax.typing import Array, Float


def guided_linear(
    layer: nnx.Linear, x: Float[Array, "*b c"], guidance: Float[Array, "*g d"]
) -> Float[Array, "*b e"]:
    """``layer(concat(x, guidance))`` where ``guidance`` broadcasts against ``x``.

    The first ``c`` rows of the kernel belong to ``x``, the other ``d`` to the guidance. The two
    products are added, so guidance that is shared (by all classes, by all pixels) is multiplied
    once instead of being repeated.
    """
    kernel = layer.kernel[...]
    dim = x.shape[-1]
    shared = jnp.matmul(guidance, kernel[dim:])
    if layer.bias is not None:
        shared = shared + layer.bias[...]
    return jnp.matmul(x, kernel[:dim]) + shared
