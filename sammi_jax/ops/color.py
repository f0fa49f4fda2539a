"""Color jitter on the device, as detectron2's ``ColorAugSSDTransform`` (after SSD's training).

Brightness first, then saturation and hue, with contrast before or after these two; each with
probability one half. Every step gives integers of 0..255, and hue is OpenCV's of 0..179, as in
the original.
"""

import jax
import jax.numpy as jnp

from sammi_jax.typing import Array, Float

BRIGHTNESS = 32.0  # added: uniform in plus or minus
CONTRAST = SATURATION = (0.5, 1.5)  # factors
HUE = 18  # added: an integer in plus or minus, in OpenCV's units of two degrees
_HUES = 180.0


def jitter_colors(images: Float[Array, "b h w 3"], key: Array) -> Float[Array, "b h w 3"]:
    """Jitter RGB images of 0..255, each with random numbers of its own."""
    return jax.vmap(_jitter)(images, jax.random.split(key, images.shape[0]))


def _jitter(image: Float[Array, "h w 3"], key: Array) -> Float[Array, "h w 3"]:
    which, amount, hue_key = jax.random.split(key, 3)
    use = jax.random.bernoulli(which, 0.5, (5,))
    u = jax.random.uniform(amount, (3,))
    offset = BRIGHTNESS * (2 * u[0] - 1)
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * u[1]
    saturation = SATURATION[0] + (SATURATION[1] - SATURATION[0]) * u[2]
    shift = jax.random.randint(hue_key, (), -HUE, HUE + 1)
    image = jnp.where(use[0], _whole(image + offset), image)
    early, late = use[1] & use[4], use[1] & ~use[4]
    image = jnp.where(early, _whole(image * contrast), image)
    image = jnp.where(use[2], saturate(image, saturation), image)
    image = jnp.where(use[3], rotate_hue(image, shift), image)
    return jnp.where(late, _whole(image * contrast), image)


def saturate(image: Float[Array, "h w 3"], factor: Float[Array, ""]) -> Float[Array, "h w 3"]:
    """Scale the saturation of an RGB image of 0..255."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb(hue, _whole(saturation * factor), value)


def rotate_hue(image: Float[Array, "h w 3"], shift: Array) -> Float[Array, "h w 3"]:
    """Rotate the hue of an RGB image of 0..255 by ``shift`` units of two degrees."""
    hue, saturation, value = rgb_to_hsv(image)
    return hsv_to_rgb((hue + shift) % _HUES, saturation, value)


def rgb_to_hsv(
    image: Float[Array, "*s 3"],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"], Float[Array, "*s"]]:
    """OpenCV's 8-bit HSV: hue 0..179, saturation and value 0..255, rounded."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(axis=-1)
    chroma = value - image.min(axis=-1)
    safe = jnp.maximum(chroma, 1.0)  # integers: a chroma below 1 is 0
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = jnp.where(chroma > 0, jnp.round(30 * sector) % _HUES, 0.0)
    saturation = jnp.where(value > 0, jnp.round(255 * chroma / jnp.maximum(value, 1.0)), 0.0)
    return hue, saturation, value


def hsv_to_rgb(
    hue: Float[Array, "*s"], saturation: Float[Array, "*s"], value: Float[Array, "*s"]
) -> Float[Array, "*s 3"]:
    """The inverse of `rgb_to_hsv`, rounded to integers."""
    offsets = jnp.array([5.0, 3.0, 1.0])
    sector = hue[..., None] / 30
    k = (jnp.broadcast_to(offsets, (*hue.shape, 3)) + sector) % 6
    fall = jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)
    return jnp.round(value[..., None] * (1 - saturation[..., None] / 255 * fall))


def _whole(values: Array) -> Array:
    """Clip to 0..255 and round down, as a cast to uint8 does."""
    return jnp.floor(jnp.clip(values, 0.0, 255.0))
