"""CLIP's image preprocessing, on the device."""

import jax.numpy as jnp
import numpy as np

from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Float

CLIP_MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)  # 0..255, RGB
CLIP_STD = np.array([68.5005327, 66.6321579, 70.3231630], np.float32)


def clip_normalize(images: Float[Array, "*b h w 3"]) -> Float[Array, "*b h w 3"]:
    """CLIP's normalization of RGB 0..255."""
    mean, std = (jnp.broadcast_to(value, images.shape) for value in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def clip_views(images: Float[Array, "*b h w 3"], side: int) -> Float[Array, "*b s s 3"]:
    """CLIP's normalization of RGB 0..255, then the bilinear resize to its input side."""
    return resize(clip_normalize(images), (side, side))
