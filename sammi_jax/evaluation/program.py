"""The compiled evaluation: images and labels in, counts out; nothing in between leaves the device.

Two programs. The *network* has one shape whatever the images' sizes and is compiled once for a
vocabulary. The *read-out* blends the views, resizes scores to the image, takes the best class and
counts; it is compiled once for each bucket (`buckets`). Both are split over all devices by
``shard_map``; each device computes its images one by one, so that no number depends on the batch
size or on how many devices there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.evaluation.totals import Counts, count_classes, count_pairs
from sammi_jax.inference.forward import ViewScores
from sammi_jax.inference.inputs import SegmenterInput
from sammi_jax.inference.readout import PixelTaps, best_class, interpolate
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.proposals import MaskProposals
from sammi_jax.ops.boundary import OUTSIDE, region_boundary
from sammi_jax.ops.resize import bilinear_taps
from sammi_jax.ops.views import ViewLayout
from sammi_jax.parallel.mesh import AXES, over_devices
from sammi_jax.typing import Array, Bool, Int, Integer, NpArray

BOUNDARY_RATIO = 0.02  # of the image's diagonal: the width of a boundary (arXiv 2103.16562)


@runtime_checkable
class Predictor(Protocol):
    """What is evaluated: `inference.segmenter.Segmenter` or `inference.zero_shot.ZeroShot`."""

    config: SegmenterConfig

    @property
    def state(self) -> Any:
        """Parameters, as `views` takes them."""
        ...

    def encode_classes(self, class_names: Sequence[str]) -> ClassTexts:
        """Text embeddings; the class axis is padded."""
        ...

    def prepare(
        self,
        image: NpArray,
        config: SegmenterConfig | None = None,
        masks: NpArray | None = None,
        num_slots: int = 0,
        mask_quality: NpArray | None = None,
    ) -> SegmenterInput:
        """One image, and masks in the place of SAM's, as the model's input."""
        ...

    def views(
        self,
        state: Any,
        inputs: SegmenterInput,
        text: ClassTexts,
        layout: ViewLayout,
    ) -> ViewScores:
        """Class maps of every view."""
        ...  # fmt: skip

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Any:
        """Scores on the canvas."""
        ...


@dataclass(frozen=True)
class Variant:
    """One way an image is shown to the model (test-time augmentation)."""

    config: SegmenterConfig  # the model's, perhaps with another canvas
    layout: ViewLayout
    flip: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Target:
    """Labels of a batch, and how scores are brought to their pixels."""

    label: Any  # [b, H, W] int32: a class, or OUTSIDE where no pixel counts
    inside: Any  # [b, H, W] bool: part of the image, not of the bucket's padding
    taps: Any  # for each variant the `PixelTaps`, with a leading batch axis
    distance: Any  # [b] int32: the width of a boundary, in pixels
    present: Any  # [b] bool: False for copies that only fill up the batch


@dataclass(frozen=True)
class Readout:
    """What turns scores into counts, fixed for one evaluation.

    Attributes:
        merge: the evaluated class of each text.
        num_classes: C.
        class_chunk: texts whose score maps are in memory at the same time.
        background: the class of pixels whose best score is below ``threshold``, if any.
        threshold: between 0 and 1, where there is a ``background``.
        boundary: whether boundaries are counted as well.
    """

    merge: tuple[int, ...]
    num_classes: int
    class_chunk: int
    background: int | None
    threshold: float | None
    boundary: bool


def make_target(
    labels: Sequence[Integer[NpArray, "_ _"]],
    sizes: Sequence[tuple[int, int]],
    variant_sides: Sequence[int],
    ignore_label: int,
    shape: tuple[int, int],
    batch_size: int,
) -> Target:
    """Pad labels and prepare resizing. The last example is repeated to fill up the batch.

    Args:
        labels: of the batch's images.
        sizes: their (height, width).
        variant_sides: side of the square score maps of each variant, in pixels.
        ignore_label: label that does not count.
        shape: (height, width) of the bucket.
        batch_size: examples in the arrays.
    """
    rows = [min(i, len(labels) - 1) for i in range(batch_size)]
    label = np.full((batch_size, *shape), OUTSIDE, np.int32)
    inside = np.zeros((batch_size, *shape), bool)
    for row, index in enumerate(rows):
        height, width = sizes[index]
        values = np.asarray(labels[index], np.int32)
        label[row, :height, :width] = np.where(values == ignore_label, OUTSIDE, values)
        inside[row, :height, :width] = True

    def taps(axis: int, side: int) -> tuple[NpArray, NpArray]:
        pairs = [bilinear_taps(side, sizes[i][axis], shape[axis]) for i in rows]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    return Target(
        label,
        inside,
        tuple(PixelTaps(*taps(0, side), *taps(1, side)) for side in variant_sides),
        np.array([boundary_distance(*sizes[i]) for i in rows], np.int32),
        np.arange(batch_size) < len(labels),
    )


def boundary_distance(height: int, width: int) -> int:
    """Width of a boundary in pixels."""
    return max(1, round(BOUNDARY_RATIO * float(np.hypot(height, width))))


def make_network(predictor: Predictor, variants: Sequence[Variant], mesh: Mesh) -> Any:
    """``f(state, [inputs], text) -> [ViewScores]``, one for each variant; compiled when used."""

    def local(state: Any, inputs: Any, text: ClassTexts) -> Any:
        def one(inputs: Any) -> list[ViewScores]:
            outputs = [
                predictor.views(state, jax.tree.map(lambda x: x[None], i), text, v.layout)
                for i, v in zip(inputs, variants, strict=True)
            ]
            return jax.tree.map(lambda x: x[0], outputs)

        return jax.lax.map(one, inputs)

    return jax.jit(over_devices(local, mesh, (None, AXES, None), AXES))


def make_readout(
    predictor: Predictor, variants: Sequence[Variant], readout: Readout, mesh: Mesh
) -> Any:
    """``f([ViewScores], class_mask, target) -> (counts, prediction)``.

    ``counts`` are those of the whole batch, on every device; ``prediction`` is int32
    ``[b, H, W]``, the evaluated class of each pixel of the bucket.
    """

    def local(scores: Any, mask: Array, target: Target) -> tuple[Counts, Array]:
        def one(args: Any) -> tuple[Counts, Array]:
            scores, target = args
            prediction = _predict(predictor, variants, readout, scores, mask, target)
            return _count(readout, prediction, scores[0].proposals, target), prediction

        counts, prediction = jax.lax.map(one, (scores, target))
        total = jax.tree.map(lambda x: x.sum(axis=0, dtype=jnp.uint32), counts)
        return jax.tree.map(lambda x: jax.lax.psum(x, AXES), total), prediction

    return jax.jit(over_devices(local, mesh, (AXES, None, AXES), (None, AXES)))


def _predict(
    predictor: Predictor,
    variants: Sequence[Variant],
    readout: Readout,
    scores: Sequence[ViewScores],
    mask: Bool[Array, " t"],
    target: Target,
) -> Int[Array, "h w"]:
    """The evaluated class of every pixel, from chunks of classes."""
    num_texts = mask.shape[0]
    batched = jax.tree.map(lambda x: x[None], list(scores))

    def canvas_maps(classes: Array) -> list[Array]:
        return [
            predictor.blend(each.choose(classes), variant.layout)[0]
            for variant, each in zip(variants, batched, strict=True)
        ]

    def on_pixels(maps: list[Array]) -> Array:
        total: Any = sum(
            interpolate(each[..., ::-1] if variant.flip else each, taps)
            for variant, each, taps in zip(variants, maps, target.taps, strict=True)
        )
        return total / len(variants)

    decoded = jnp.stack([each.decoded() for each in batched])
    mask = mask & decoded.any(axis=0)
    shape = (target.label.shape[0], target.label.shape[1])
    score, index = best_class(canvas_maps, on_pixels, mask, readout.class_chunk, shape)
    merge = np.zeros(num_texts, np.int32)  # texts that pad the axis never win
    merge[: len(readout.merge)] = readout.merge
    prediction = jnp.asarray(merge)[index]
    if readout.threshold is not None and readout.background is not None:
        prediction = jnp.where(score < readout.threshold, readout.background, prediction)
    return prediction


def _count(
    readout: Readout, prediction: Array, proposals: MaskProposals | None, target: Target
) -> Counts:
    """One image's counts; zeros for a copy that fills up the batch."""
    counted = (target.label >= 0) & target.present
    flat = (target.label.ravel(), prediction.ravel(), counted.ravel(), readout.num_classes)
    boundary = jnp.zeros((3, readout.num_classes), jnp.uint32)
    if readout.boundary:
        boundary = _count_boundary(readout.num_classes, prediction, counted, target)
    points = masks = jnp.zeros((), jnp.uint32)
    if proposals is not None:
        number = lambda valid: (valid & target.present).sum(dtype=jnp.uint32)  # noqa: E731
        points, masks = number(proposals.point_valid), number(proposals.valid)
    images = target.present.astype(jnp.uint32)
    return Counts(count_pairs(*flat), boundary, points, masks, images)


def _count_boundary(num_classes: int, prediction: Array, counted: Array, target: Target) -> Array:
    """Boundary pixels of each class: in both maps, in the label, in the prediction."""
    in_label = region_boundary(target.label, target.distance)
    inside = jnp.where(target.inside, prediction, OUTSIDE)
    in_prediction = region_boundary(inside, target.distance)
    both = in_label & in_prediction & (target.label == prediction)
    count = lambda classes, where: count_classes(  # noqa: E731
        classes.ravel(), (where & counted).ravel(), num_classes
    )
    return jnp.stack(
        [
            count(target.label, both),
            count(target.label, in_label),
            count(prediction, in_prediction),
        ]
    )
