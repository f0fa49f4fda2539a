"""Cost map: cosine of every patch feature with every class's text features.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py
(``Aggregator.correlation``); SAM-MI method.md section 1. Deviations: none.
"""

import jax.numpy as jnp

from sammi_jax.typing import Array, Float

EPS = 1e-12


def _unit(x: Array) -> Array:
    # The square is bounded before the root, so that the gradient at zero is zero and not NaN.
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, EPS**2))


def cost_map(
    image_features: Float[Array, "b h w d"], text_features: Float[Array, "t p d"]
) -> Float[Array, "b h w t p"]:
    """Cosine similarities in float32, norms bounded below by 1e-12; no temperature, no softmax.

    Args:
        image_features: dense features of each patch, of any length.
        text_features: one feature for each class and prompt template, of any length.
    """
    image = _unit(image_features.astype(jnp.float32))
    text = _unit(text_features.astype(jnp.float32))
    return jnp.einsum("bhwd,tpd->bhwtp", image, text)
