"""Cost map: cosine of every patch feature with every class's text features.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py
(``Aggregator.correlation``); docs/method.md, 1. Deviations: none.
"""

from sammi_jax.ops.cosine import cosine_map
from sammi_jax.typing import Array, Float


def cost_map(
    image_features: Float[Array, "b h w d"], text_features: Float[Array, "t p d"]
) -> Float[Array, "b h w t p"]:
    """Cosine similarities in float32, norms bounded below by 1e-12; no temperature, no softmax.

    Args:
        image_features: dense features of each patch, of any length.
        text_features: one feature for each class and prompt template, of any length.
    """
    return cosine_map(image_features, text_features)
