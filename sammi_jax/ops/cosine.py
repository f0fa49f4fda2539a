"""Unit vectors and cosines, with a gradient that is finite at zero."""

import jax.numpy as jnp

from sammi_jax.typing import Array, Float

EPS = 1e-12  # PyTorch's ``normalize``: a shorter vector is divided by this instead


def l2_normalize(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Scale the last axis to unit length; a zero vector stays zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, EPS**2))


def cosine_map(
    features: Float[Array, "b h w d"], text_features: Float[Array, "t p d"]
) -> Float[Array, "b h w t p"]:
    """Cosine of every cell's feature with every class and template, in float32."""
    image = l2_normalize(features.astype(jnp.float32))
    text = l2_normalize(text_features.astype(jnp.float32))
    return jnp.einsum("bhwd,tpd->bhwtp", image, text)
