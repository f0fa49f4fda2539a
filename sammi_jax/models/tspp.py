"""Text-guided Sparse Point Prompter (TSPP): where to prompt SAM (docs/method.md section 2).

The paper (https://arxiv.org/abs/2511.20027) says: two linear projection heads, sparse points in
place of SAM's dense grid, two assumptions. The start of the heads, the score, the suppression, the
auxiliary loss and its scalar bias are [ours].

Two readings of docs/method.md: the 3 x 3 neighborhood of a cell holds the cell itself and, at the
border, only cells that exist; the label map at grid resolution is the share of each class among a
cell's pixels that are not ignored.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import TsppConfig
from sammi_jax.errors import SammiError
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.ops.masks import box_mean
from sammi_jax.typing import Array, Bool, Float, Int, Leaf

NEIGHBORHOOD = 3  # side of the square over which a region must agree
# Scores are compared in steps of this. So cells that differ by rounding alone are a tie, and the
# first of them is taken, whatever the device, the batch or the order of the classes.
SCORE_STEP = 2.0**-16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PointPrompts:
    """A fixed number of points on the cost map's grid."""

    cells: Leaf  # [b, k, 2] float32 (x, y) of cell centers in cells: column + 0.5, row + 0.5
    valid: Leaf  # [b, k] bool
    scores: Leaf  # [b, k] float32 in [0, 1], descending


class Tspp(nnx.Module):
    """Two projection heads that start equal and with orthonormal rows or columns.

    Before training the class logits are thus CLIP's own similarity, scaled: exactly where
    ``config.dim >= embed_dim``, else up to the error of a random projection.
    """

    def __init__(self, config: TsppConfig, embed_dim: int, *, rngs: nnx.Rngs):
        shape = (embed_dim, config.dim or embed_dim)
        start = nnx.initializers.orthogonal()(rngs.params(), shape, jnp.float32)
        self.visual, self.textual = (
            nnx.Linear(
                *shape, use_bias=False, kernel_init=lambda *_, **__: jnp.array(start), rngs=rngs
            )
            for _ in range(2)
        )
        self.log_scale = nnx.Param(jnp.asarray(math.log(config.scale), jnp.float32))
        # [ours] For `tspp_loss` only, in units of the cosine: the same for all classes, it cannot
        # move the distribution over classes, but it lets each class's probability be calibrated.
        self.bias = nnx.Param(jnp.zeros((), jnp.float32))

    @jax.named_scope("tspp")
    def class_logits(
        self, features: Float[Array, "*b h w d"], text_features: Float[Array, "t p d"]
    ) -> Float[Array, "*b h w t"]:
        """``scale * cos`` of projected cells and classes, without the bias of the loss.

        The templates of a class are averaged as unit vectors. No gradient leaves the heads.

        Args:
            features: F_l, dense CLIP features of any length.
            text_features: F_t, of any length.
        """
        features, text_features = jax.lax.stop_gradient((features, text_features))
        classes = l2_normalize(text_features).mean(axis=1)
        # A large scale multiplies these cosines: they are float32 whatever the heads compute in.
        visual = l2_normalize(self.visual(features).astype(jnp.float32))
        textual = l2_normalize(self.textual(classes).astype(jnp.float32))
        return jnp.exp(self.log_scale[...]) * jnp.einsum("...d,td->...t", visual, textual)

    def calibrated(self, class_logits: Float[Array, "*b t"]) -> Float[Array, "*b t"]:
        """The class logits of `tspp_loss`: each class for itself, so an offset is learned."""
        return class_logits + jnp.exp(self.log_scale[...]) * self.bias[...]


def class_distribution(
    logits: Float[Array, "*b h w t"], class_mask: Bool[Array, " t"]
) -> Float[Array, "*b h w t"]:
    """Softmax over the classes that ``class_mask`` names, in float32; the others get 0."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1, where=class_mask)


@jax.named_scope("tspp")
def sample_points(
    distribution: Float[Array, "b h w t"],
    num_points: int,
    min_score: float | Float[Array, ""],
    sigma: float | Float[Array, ""],
    interior: bool = True,
) -> PointPrompts:
    """Choose points one after the other, each with the best score that is left. No gradient.

    A cell's score is its largest class probability times its mean inner product with its 3 x 3
    neighborhood: high inside a region. A chosen cell gets 0 and lowers the others by their
    likeness to it and their nearness, so that one region gives one point (docs/method.md 2).
    Scores are rounded to multiples of `SCORE_STEP`; of equal ones the first in reading order wins.

    Args:
        distribution: class probabilities A of every cell.
        num_points: slots K, static.
        min_score: a point with a lower score is not valid; nor are those after it.
        sigma: radius of the suppression in cells.
        interior: whether the neighborhood counts, static; without it a cell's score is its largest
            class probability.
    """
    _, height, width, _ = distribution.shape
    distribution = jax.lax.stop_gradient(distribution).astype(jnp.float32)
    unit = rearrange(l2_normalize(distribution), "b h w t -> b (h w) t")
    rows, columns = jnp.divmod(jnp.arange(height * width), width)
    centers = jnp.stack([columns, rows], axis=-1) + 0.5  # (x, y)

    def choose(score: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        rounded = jnp.round(score / SCORE_STEP) * SCORE_STEP
        best = jnp.argmax(rounded, axis=-1)  # [b]
        value = jnp.max(rounded, axis=-1)
        chosen = jnp.take_along_axis(unit, best[:, None, None], axis=1)[:, 0]
        alike = jnp.einsum("bpt,bt->bp", unit, chosen, precision="highest")
        distance = jnp.sum(jnp.square(centers[None] - centers[best][:, None]), axis=-1)
        score = score * (1.0 - alike * jnp.exp(-distance / (2.0 * sigma**2)))
        taken = jnp.arange(height * width)[None] == best[:, None]
        return jnp.where(taken, 0.0, score), (best, value)

    score = _interior_score(distribution) if interior else distribution.max(axis=-1)
    score = rearrange(score, "b h w -> b (h w)")
    _, (best, value) = jax.lax.scan(choose, score, None, length=num_points)
    best, value = best.T, value.T
    return PointPrompts(cells=centers[best], valid=value >= min_score, scores=value)


def _interior_score(distribution: Float[Array, "b h w t"]) -> Float[Array, "b h w"]:
    """``max_t A(p, t) * mean_q <A(p), A(q)>``: the mean of products is one with the mean A."""
    around = box_mean(distribution, NEIGHBORHOOD)
    return distribution.max(axis=-1) * jnp.sum(distribution * around, axis=-1)


def grid_points(num_per_side: int, grid_size: int, *, batch: int) -> PointPrompts:
    """The plain grid, ``num_per_side`` squared points row by row, all valid (the ablation).

    The points are the centers of equal squares (segment_anything/utils/amg.py
    ``build_point_grid``), in cells of a cost map of side ``grid_size``.
    """
    ticks = (jnp.arange(num_per_side) + 0.5) * (grid_size / num_per_side)
    y, x = jnp.meshgrid(ticks, ticks, indexing="ij")
    cells = jnp.stack([x.ravel(), y.ravel()], axis=-1)
    shape = (batch, num_per_side**2)
    return PointPrompts(
        cells=jnp.broadcast_to(cells, (*shape, 2)),
        valid=jnp.ones(shape, bool),
        scores=jnp.ones(shape, jnp.float32),
    )


@jax.named_scope("loss")
def tspp_loss(
    logits: Float[Array, "b h w t"],
    labels: Int[Array, "b h2 w2"],
    class_mask: Bool[Array, " t"],
    ignore_label: int,
) -> Float[Array, ""]:
    """Binary cross-entropy of every class against its share of each cell's pixels.

    A cell weighs as much as its pixels that are not ignored; the mean is over cells and over the
    classes in ``class_mask``, and 0 where every pixel is ignored.

    Args:
        logits: `Tspp.calibrated`.
        labels: class indices; another value than ``ignore_label`` outside [0, t) means no class.
        class_mask: False for classes that only pad the axis.
        ignore_label: label of pixels that do not count.

    Raises:
        SammiError: the label map's sides are not multiples of the grid's.
    """
    target, weight = _cell_targets(labels, logits.shape, ignore_label)
    logits = logits.astype(jnp.float32)
    loss = jax.nn.softplus(logits) - logits * target
    weight = weight[..., None] * class_mask[None, None, None]
    total = weight.sum()
    return jnp.sum(loss * weight) / jnp.where(total > 0, total, 1.0)


def _cell_targets(
    labels: Int[Array, "b h2 w2"], shape: tuple[int, ...], ignore_label: int
) -> tuple[Float[Array, "b h w t"], Float[Array, "b h w"]]:
    """Each class's share of a cell's counted pixels, and the share of pixels that count."""
    _, height, width, num_classes = shape
    if labels.shape[1] % height or labels.shape[2] % width:
        raise SammiError(
            f"labels of {labels.shape[1]} x {labels.shape[2]} pixels do not fill the grid of "
            f"{height} x {width} cells evenly: use a multiple of it"
        )
    ignored = labels == ignore_label
    rows = rearrange(
        jnp.where(ignored, num_classes, labels), "b (h i) (w j) -> i b h w j", h=height, w=width
    )

    def count(total: Array, row: Array) -> tuple[Array, None]:
        same = row[..., None] == jnp.arange(num_classes)[None, None, None, None]
        return total + jnp.sum(same, axis=-2), None

    # Row by row of a cell's pixels: one array of [pixels, classes] takes 90 times the memory and
    # 50 times the time on CPU, where XLA does not fuse the comparison into the sum.
    counts, _ = jax.lax.scan(count, jnp.zeros(shape, jnp.int32), rows)
    counted = rearrange(~ignored, "b (h i) (w j) -> b h w (i j)", h=height, w=width)
    seen = jnp.sum(counted, axis=-1)
    return counts / jnp.maximum(seen, 1)[..., None], seen / counted.shape[-1]
