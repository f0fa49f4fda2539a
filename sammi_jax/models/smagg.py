"""Shallow Mask Aggregation (SMAgg): partial masks of one thing are merged (docs/method.md 4).

The paper (https://arxiv.org/abs/2511.20027) says that masks are partially aggregated to undo
over-segmentation. The rule is [ours]: masks that touch and look alike are joined, once.

Deviations from docs/method.md: none. Two masks that share a pixel touch already, so its
containment test adds an edge only where ``min_containment`` is 0 (then every pair passes).
"""

import jax
import jax.numpy as jnp

from sammi_jax.config.model import SmaggConfig
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.ops.masks import average_pool, containment, dilate, intersections, mask_pool
from sammi_jax.typing import Array, Bool, Float, Int


def mask_graph(
    masks: Bool[Array, "b n h w"],
    valid: Bool[Array, "b n"],
    features: Float[Array, "b h2 w2 c"],
    distributions: Float[Array, "b h2 w2 t"],
    config: SmaggConfig,
) -> Bool[Array, "b n n"]:
    """Which pairs of masks belong together: symmetric, invalid masks without any edge.

    Two masks are joined where they touch (they share a pixel after growing by
    ``config.dilation``, or one holds ``config.min_containment`` of the other) and are alike (the
    cosines of their mean features and of their mean class distributions reach the thresholds).
    The diagonal means nothing.

    Args:
        masks: at the resolution of the features or a multiple of it: masks touch, or not, at
            their own resolution, and each cell of the features counts by the share of it that
            the mask covers, so that a part smaller than a cell has features too.
        valid: which slots hold a mask.
        features: shallow features, F_h2.
        distributions: class probabilities.
        config: thresholds.
    """
    touch = intersections(dilate(masks, config.dilation)) > 0
    touch |= containment(masks) >= config.min_containment
    coverage = average_pool(masks, masks.shape[2] // features.shape[1])
    alike = _cosines(coverage, features) >= config.min_feature_similarity
    alike &= _cosines(coverage, distributions) >= config.min_class_similarity
    return touch & alike & valid[:, :, None] & valid[:, None, :]


def _cosines(
    coverage: Float[Array, "b n h2 w2"], features: Float[Array, "b h2 w2 c"]
) -> Float[Array, "b n n"]:
    """Cosine of every pair of mask-pooled features, in full float32: it meets a threshold."""
    pooled = l2_normalize(mask_pool(coverage, features).astype(jnp.float32))
    return jnp.einsum("bnc,bmc->bnm", pooled, pooled, precision="highest")


def connected_components(adjacency: Bool[Array, "b n n"]) -> Int[Array, "b n"]:
    """Label each node with the smallest index of its component (edges taken as undirected).

    Exact: s squarings of the reachability matrix follow every path of up to 2^s edges, and no
    component's longest shortest path has more than n - 1.

    Example:
        >>> connected_components(jnp.zeros((1, 3, 3), bool).at[0, 0, 2].set(True))
        Array([[0, 1, 0]], dtype=int32)
    """
    num_nodes = adjacency.shape[-1]
    reachable = adjacency | adjacency.swapaxes(-1, -2) | jnp.eye(num_nodes, dtype=bool)[None]

    def square(_: Array, reachable: Array) -> Array:
        steps = reachable.astype(jnp.float32)
        return jnp.einsum("bij,bjk->bik", steps, steps) > 0

    reachable = jax.lax.fori_loop(0, (num_nodes - 1).bit_length(), square, reachable)
    return jnp.argmax(reachable, axis=-1).astype(jnp.int32)  # the first True


@jax.named_scope("smagg")
def group_masks(
    masks: Bool[Array, "b n h w"],
    valid: Bool[Array, "b n"],
    features: Float[Array, "b h2 w2 c"],
    distributions: Float[Array, "b h2 w2 t"],
    config: SmaggConfig,
) -> Bool[Array, "b n n"]:
    """Which masks ``j`` are united in slot ``i``: a component lies at its smallest index."""
    labels = connected_components(mask_graph(masks, valid, features, distributions, config))
    slots = jnp.arange(masks.shape[1])[None, :, None]
    return (labels[:, None, :] == slots) & valid[:, None, :]


@jax.named_scope("smagg")
def unite_masks(
    member: Bool[Array, "b n n"], masks: Bool[Array, "b n h w"], quality: Float[Array, "b n"]
) -> tuple[Bool[Array, "b n h w"], Bool[Array, "b n"], Float[Array, "b n"]]:
    """The union of each slot's members, its validity, and the mean of the members' quality."""
    weights = member.astype(jnp.float32)
    covered = jnp.einsum("bij,bjhw->bihw", weights, masks.astype(jnp.float32))
    mean = jnp.einsum("bij,bj->bi", weights, quality) / jnp.maximum(weights.sum(axis=-1), 1.0)
    return covered > 0, member.any(axis=-1), mean


def aggregate_masks(
    masks: Bool[Array, "b n h w"],
    valid: Bool[Array, "b n"],
    features: Float[Array, "b h2 w2 c"],
    distributions: Float[Array, "b h2 w2 t"],
    config: SmaggConfig,
) -> tuple[Bool[Array, "b n h w"], Bool[Array, "b n"]]:
    """Merge the masks that belong together: the union of each component of `mask_graph`.

    Args:
        masks: at the resolution of the features or a multiple of it.
        valid: which slots hold a mask.
        features: shallow features, F_h2.
        distributions: class probabilities.
        config: thresholds.

    Returns:
        As many slots as before and their validity. A component's union lies at its smallest
        index; every other slot is empty and invalid.
    """
    member = group_masks(masks, valid, features, distributions, config)
    united, is_used, _ = unite_masks(member, masks, jnp.ones(valid.shape))
    return united, is_used
