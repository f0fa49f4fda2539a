"""Noise on binary masks, like the errors of a poor segmenter: dropped, dilated, eroded, shifted.

[ours] (docs/method.md, 7): the paper claims robustness to masks of low quality; the parts of it
that we have do not say how it is trained or measured.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sammi_jax.ops import masks as mask_ops
from sammi_jax.typing import Array, Bool, Float, Int

_DROP, _DILATE, _ERODE, _SHIFT, _NONE = range(5)


def add_noise(
    masks: Bool[Array, "b n h w"],
    valid: Bool[Array, "b n"],
    quality: Float[Array, "b n"],
    key: Array,
    *,
    drop: float,
    dilate: float,
    erode: float,
    shift: float,
    radius: int,
    max_shift: int,
) -> tuple[Bool[Array, "b n h w"], Bool[Array, "b n"], Float[Array, "b n"]]:
    """Change each mask in one way or not at all, drawn independently for each mask.

    A changed mask's quality falls with it: whoever looked at the mask would expect less of it.

    Args:
        masks: to be changed.
        valid: False for slots without a mask, which stay False.
        quality: the IoU expected of each mask.
        key: of the random numbers.
        drop: share of masks that become invalid.
        dilate: share of masks that grow by ``radius``.
        erode: share of masks that shrink by ``radius``, but not at the border of the frame.
        shift: share of masks that move; the part outside the frame is lost.
        radius: in pixels, along rows and columns.
        max_shift: a mask moves by up to so many rows and columns, uniformly in both directions.

    Returns:
        The masks, empty where invalid; their validity: a mask that becomes empty is invalid; and
        their quality times the IoU of the changed mask and the mask as it was.
    """
    kind_key, shift_key = jax.random.split(key)
    kind = _draw_kinds(kind_key, (drop, dilate, erode, shift), valid.shape)
    offsets = jax.random.randint(shift_key, (*valid.shape, 2), -max_shift, max_shift + 1)
    noisy = jnp.select(
        [(kind == k)[..., None, None] for k in (_DILATE, _ERODE, _SHIFT)],
        [
            mask_ops.dilate(masks, radius),
            ~mask_ops.dilate(~masks, radius),
            _shift_all(masks, offsets, max_shift),
        ],
        masks,
    )
    valid = valid & (kind != _DROP) & ((kind == _NONE) | noisy.any(axis=(-2, -1)))
    kept = mask_ops.iou(noisy, masks)
    return noisy & valid[..., None, None], valid, quality * jnp.where(kind == _NONE, 1.0, kept)


def _draw_kinds(key: Array, rates: tuple[float, ...], shape: tuple[int, ...]) -> Int[Array, "b n"]:
    """Index into ``rates``, drawn with these probabilities; ``len(rates)`` for no change."""
    bounds = np.cumsum(rates).astype(np.float32)[None, None]
    return (jax.random.uniform(key, shape)[..., None] >= bounds).sum(axis=-1)


def _shift_all(
    masks: Bool[Array, "b n h w"], offsets: Int[Array, "b n 2"], max_shift: int
) -> Bool[Array, "b n h w"]:
    """Move each mask down and to the right by its offsets; what enters the frame is False."""
    around = (max_shift, max_shift)
    padded = jnp.pad(masks, ((0, 0), (0, 0), around, around))

    def cut(mask: Array, offset: Array) -> Array:
        return jax.lax.dynamic_slice(mask, max_shift - offset, masks.shape[-2:])

    return jax.vmap(jax.vmap(cut))(padded, offsets)
