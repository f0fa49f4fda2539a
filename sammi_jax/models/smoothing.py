"""Smoothing: each class's logits are drawn toward their mean in every mask (docs/method.md 5).

[ours], the last part of the injection. It acts on the answer at the masks' own resolution, which is
finer than the decoder's: this is where a mask's outline reaches the pixels. No class is chosen: all
are drawn alike, in each mask with a strength that is learned from how far the mask can be trusted.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.models.proposals import MaskProposals
from sammi_jax.ops.masks import average_pool, mask_pool
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Float, Leaf

SCALE = 10.0  # c: the strength learns as fast as the logits are large
# Of the two measures of trust: what counts as ordinary, and how far good and bad lie from it.
ORDINARY, SPREAD = 0.75, 0.2
_MIN_PROBABILITY = 1e-7  # a logit of -16: below it probabilities cannot be told from 0 or 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RegionLogits:
    """What the masks of a canvas say of its classes."""

    masks: Leaf  # [b, n, H, W] bool, False where not valid
    means: Leaf  # [b, n, t] float32: mean logits in each mask
    strength: Leaf  # [b, n] float32 in (-1, 1); 0 where not valid


class Smoothing(nnx.Module):
    """Three numbers: the strength of the smoothing, and how much it depends on trust.

    They start at zero, where nothing changes, and have a gradient from the first step on.
    """

    def __init__(self):
        self.weights = nnx.Param(jnp.zeros(3))

    def __call__(self, logits: Float[Array, "b t h w"], proposals: MaskProposals) -> RegionLogits:
        """The regions of a canvas.

        ``strength = tanh(c theta . [1, (q - 0.75) / 0.2, (a - 0.75) / 0.2])`` with SAM's estimate
        of the IoU q and the agreement a of the mask's pixels about their class.

        Args:
            logits: of the whole canvas; -100 for absent classes.
            proposals: its masks, of which a pixel of ``logits`` holds a square of pixels.
        """
        masks = proposals.masks & proposals.valid[:, :, None, None]
        weights = average_pool(masks, masks.shape[-1] // logits.shape[-1])
        maps = rearrange(logits, "b t h w -> b h w t").astype(jnp.float32)
        trust = jnp.stack([proposals.quality, agreement(weights, maps)], axis=-1)
        trust = jnp.pad((trust - ORDINARY) / SPREAD, ((0, 0), (0, 0), (1, 0)), constant_values=1.0)
        strength = jnp.tanh(SCALE * jax.lax.stop_gradient(trust) @ self.weights[...])
        return RegionLogits(
            masks, mask_pool(weights, maps), jnp.where(proposals.valid, strength, 0.0)
        )


def agreement(
    weights: Float[Array, "b n h w"], logits: Float[Array, "b h w t"]
) -> Float[Array, "b n"]:
    """How far the pixels of each mask agree about their class: 1 if all say the same.

    The squared length of the mean class distribution over the mean squared length; 1/k where k
    classes share the mask evenly, each sure of its part. 0 for an empty mask.
    """
    distribution = jax.nn.softmax(logits, axis=-1)
    mean = jnp.square(mask_pool(weights, distribution)).sum(axis=-1)
    each = mask_pool(weights, jnp.square(distribution).sum(axis=-1, keepdims=True))[..., 0]
    return mean / jnp.where(each > 0, each, 1.0)


@jax.named_scope("smoothing")
def smooth_logits(
    logits: Float[Array, "b t h w"], regions: RegionLogits
) -> Float[Array, "b t h2 w2"]:
    """``y + sum_n s_n W_n (mean_n - y) / max(sum_n W_n, 1)`` of a canvas.

    At the resolution of the logits or of the masks, whichever is finer (bilinear).
    """
    size = _finer(logits, regions)
    logits = _enlarge(logits.astype(jnp.float32), size)
    return logits + _change(logits, regions)


@jax.named_scope("smoothing")
def smooth_probabilities(
    probabilities: Float[Array, "b t h w"], regions: RegionLogits
) -> Float[Array, "b t h2 w2"]:
    """The same for probabilities, which keep every bit where no mask covers a pixel."""
    probabilities = _enlarge(probabilities, _finer(probabilities, regions))
    logits = canvas_logits(probabilities)
    change = jax.nn.sigmoid(logits + _change(logits, regions)) - jax.nn.sigmoid(logits)
    return probabilities + change


def canvas_logits(probabilities: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Logits again, between -16 and 16."""
    inside = jnp.clip(probabilities, _MIN_PROBABILITY, 1.0 - _MIN_PROBABILITY)
    return jnp.log(inside) - jnp.log1p(-inside)


def _finer(maps: Float[Array, "b t h w"], regions: RegionLogits) -> tuple[int, int]:
    height, width = (max(maps.shape[axis], regions.masks.shape[axis]) for axis in (2, 3))
    return height, width


def _enlarge(maps: Float[Array, "b c h w"], size: tuple[int, int]) -> Float[Array, "b c h2 w2"]:
    return maps if maps.shape[2:] == size else resize(maps[..., None], size)[..., 0]


def _change(logits: Float[Array, "b t h w"], regions: RegionLogits) -> Float[Array, "b t h w"]:
    size = (logits.shape[2], logits.shape[3])
    weights = regions.masks.astype(jnp.float32)
    pull = weights * regions.strength[:, :, None, None]
    target = jnp.einsum("bnhw,bnt->bthw", pull, regions.means)
    target, pull, cover = (
        _enlarge(x, size)
        for x in (target, pull.sum(axis=1, keepdims=True), weights.sum(axis=1, keepdims=True))
    )
    return (target - pull * logits) / jnp.maximum(cover, 1.0)
