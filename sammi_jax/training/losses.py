"""Training loss of the segmentation logits.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/cat_seg_model.py (``CATSeg.losses``); docs/catseg.md
part e. Deviations: none by default; ``ignored_as_negative=False`` is [ours].
"""

import jax
import jax.numpy as jnp

from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Int


@jax.named_scope("loss")
def segmentation_loss(
    logits: Float[Array, "b t h w"],
    labels: Int[Array, "b h2 w2"],
    class_mask: Bool[Array, " t"],
    ignore_label: int = 255,
    ignored_as_negative: bool = True,
) -> Float[Array, ""]:
    """Binary cross-entropy of every class at every pixel, at the labels' size; the mean.

    Args:
        logits: of each class; enlarged to the labels' size (bilinear, ``align_corners=False``).
        labels: index of each pixel's class, or ``ignore_label``.
        class_mask: False for classes that only pad the axis; they are left out.
        ignore_label: label of pixels without a class.
        ignored_as_negative: ignored pixels count as pixels of no class (as in the reference); if
            False they are left out.
    """
    size = (labels.shape[1], labels.shape[2])
    logits = resize(logits[..., None], size, "bilinear", align_corners=False)[..., 0]
    logits = logits.astype(jnp.float32)
    known = labels != ignore_label
    classes = jnp.arange(logits.shape[1])[None, :, None, None]
    target = (labels[:, None] == classes) & known[:, None]
    # log(1 + e^x) - x y is the cross-entropy with logit x and target y in {0, 1}.
    entropy = jax.nn.softplus(logits) - jnp.where(target, logits, 0.0)
    counted = class_mask[None, :, None, None] & (known[:, None] | ignored_as_negative)
    pixels = labels.size if ignored_as_negative else jnp.maximum(jnp.sum(known), 1)
    # Pixels first, then classes: a single sum over all would lose digits in float32.
    means = jnp.sum(jnp.where(counted, entropy, 0.0), axis=(0, 2, 3)) / pixels
    return jnp.sum(means) / jnp.maximum(jnp.sum(class_mask), 1)
