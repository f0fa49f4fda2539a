"""Linear maps and convolutions of concatenated features and guidance, without concatenating them.

``W [x; g] = W_x x + W_g g``: guidance that many classes or pixels share is multiplied once instead
of once for each. The kernel is one parameter and is split where it is used.
"""

import jax.numpy as jnp
from flax import nnx

from sammi_jax.layers.basic import Conv
from sammi_jax.layers.convolution import conv
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


def guided_conv(
    layer: Conv, x: Float[Array, "b t h w c"], guidance: Float[Array, "b h w d"]
) -> Float[Array, "b t h w e"]:
    """``layer(concat(x, guidance))``, where each image's guidance is shared by its ``t`` maps.

    Args:
        layer: convolution without bias, kernel ``[k, k, c + d, e]``, the features' channels first.
        x: maps of each class.
        guidance: one map an image.
    """
    kernel, dim = jnp.asarray(layer.kernel[...]), x.shape[-1]

    mapped = conv(x.reshape(-1, *x.shape[2:]), kernel[:, :, :dim])
    shared = conv(guidance, kernel[:, :, dim:])
    return mapped.reshape(*x.shape[:2], *mapped.shape[1:]) + shared[:, None]
