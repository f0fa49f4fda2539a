"""Segment Anything's image frames: original image -> padded square input -> original image.

Original: facebookresearch/segment-anything, segment_anything/utils/transforms.py
(ResizeLongestSide) and segment_anything/modeling/sam.py (preprocess, postprocess_masks). The
caller resizes the image itself, on the host: the original uses Pillow's antialiased bilinear filter
on 8-bit pixels.
"""

import jax.numpy as jnp
import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.ops.resize import resize, resize_matrix
from sammi_jax.typing import Array, Float, UInt8

PIXEL_MEAN = (123.675, 116.28, 103.53)  # red, green, blue, of 255
PIXEL_STD = (58.395, 57.12, 57.375)


def resized_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width after scaling the longest side to ``side``.

    Example:
        >>> resized_shape(480, 640, 1024)
        (768, 1024)
    """
    scale = side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def preprocess(
    image: Float[Array, "*b h w 3"] | UInt8[Array, "*b h w 3"], side: int
) -> Float[Array, "*b s s 3"]:
    """Normalize resized RGB images (0 to 255) and pad them with zeros below and to the right.

    Raises:
        SammiError: the image is larger than ``side``.
    """
    height, width = image.shape[-3:-1]
    if max(height, width) > side:
        raise SammiError(
            f"a {height} x {width} image does not fit SAM's input of side {side}: resize it to "
            f"{resized_shape(height, width, side)} first"
        )
    mean, std = (jnp.broadcast_to(jnp.array(v), image.shape) for v in (PIXEL_MEAN, PIXEL_STD))
    image = (image - mean) / std
    leading = [(0, 0)] * (image.ndim - 3)
    return jnp.pad(image, [*leading, (0, side - height), (0, side - width), (0, 0)])


def _input_scale(original: tuple[int, int], side: int) -> Float[Array, "2"]:
    height, width = original
    new_height, new_width = resized_shape(height, width, side)
    return jnp.array([new_width / width, new_height / height])


def to_input_coordinates(
    points: Float[Array, "*b 2"], original: tuple[int, int], side: int
) -> Float[Array, "*b 2"]:
    """(x, y) in pixels of the original image to pixels of the input; a box is two points."""
    return points * jnp.broadcast_to(_input_scale(original, side), points.shape)


def to_original_coordinates(
    points: Float[Array, "*b 2"], original: tuple[int, int], side: int
) -> Float[Array, "*b 2"]:
    """Undo `to_input_coordinates`."""
    return points / jnp.broadcast_to(_input_scale(original, side), points.shape)


def _axis_matrix(low: int, side: int, valid: int, original: int) -> Array:
    """Up-sample ``low`` cells to ``side`` pixels, keep the first ``valid``, resample these."""
    frame = resize_matrix(low, side)[:valid].astype(np.float64)
    return jnp.asarray(resize_matrix(valid, original) @ frame, jnp.float32)


def postprocess(
    masks: Float[Array, "*b h w"], original: tuple[int, int], side: int
) -> Float[Array, "*b height width"]:
    """Low-resolution mask logits in the frame of the original image.

    Bilinear to the input's side, padding cropped, bilinear to the original size: both steps are
    linear, so one matrix product does both and nothing is stored at the input's resolution.

    Args:
        masks: logits over the whole padded input.
        original: height and width of the original image.
        side: side of the padded input, in pixels.
    """
    low_height, low_width = masks.shape[-2:]
    valid_height, valid_width = resized_shape(*original, side)
    rows = _axis_matrix(low_height, side, valid_height, original[0])
    columns = _axis_matrix(low_width, side, valid_width, original[1])
    masks = jnp.einsum("oh,...hw->...ow", rows, masks)
    return jnp.einsum("ow,...hw->...ho", columns, masks)


def sam_crops(images: Float[Array, "b s s 3"], side: int) -> Float[Array, "b s2 s2 3"]:
    """Square RGB images of 0..255 resized and normalized for SAM; there is no padding."""
    return preprocess(resize(images, (side, side)), side)
