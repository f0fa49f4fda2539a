"""Unit vectors, with a gradient that is finite at zero."""

import jax.numpy as jnp

from sammi_jax.typing import Array, Float

EPS = 1e-12  # PyTorch's ``normalize``: a shorter vector is divided by this instead


def l2_normalize(x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Scale the last axis to unit length; a zero vector stays zero."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, EPS**2))
