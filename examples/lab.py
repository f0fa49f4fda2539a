"""One trained SAM-MI on the images of a data set, with masks from many sources.

A source of masks (points of some kind and SAM, true regions, damaged ones) is measured by itself,
against the images' regions, and by what the model answers when it is given these masks. Regions are
the visible instances of OpenShapes; of other data sets the connected areas of one class.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import ndimage

from sammi_jax.config.model import MaskConfig, SegmenterConfig, SmaggConfig, view_layout
from sammi_jax.data.catalogue import Dataset
from sammi_jax.evaluation.metrics import (
    confusion_matrix,
    harmonic_mean,
    scores,
    subset_miou,
)
from sammi_jax.inference.forward import (
    ViewScores,
    blend_logits,
    forward_input,
    image_views,
    resize_scores,
    sam_views,
)
from sammi_jax.inference.inputs import SegmenterInput, canvas_masks, segmenter_input, stack_inputs
from sammi_jax.inference.segmenter import load
from sammi_jax.models.proposals import (
    MASK_SCALE,
    MaskProposals,
    SamEmbeddings,
    choose_points,
    given_proposals,
    segment_points,
)
from sammi_jax.models.smagg import group_masks, unite_masks
from sammi_jax.models.tspp import PointPrompts, class_distribution
from sammi_jax.ops.resize import resize
from sammi_jax.ops.views import stitch
from sammi_jax.typing import Array, NpArray
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import read_model
from sammi_jax.weights.params import build

_MIN_REGION = 20  # pixels of the image: smaller regions are not counted
Vote = Callable[[NpArray, MaskProposals], NpArray]  # of model without masks, and masks, to labels
Change = Callable[[NpArray, np.random.Generator], NpArray]
_SLOTS = 64  # regions of an image that the arrays have room for; of more, the largest count
_PART_SLOTS = 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """What the model knows of a batch before any mask is made."""

    distribution: Any  # [b, g, g, t] class probabilities of every cell
    shallow: Any  # [b, H, W, c] F_h2
    embeddings: SamEmbeddings


@dataclass(frozen=True)
class Scenes:
    """A batch."""

    images: NpArray  # uint8 [b, h, w, 3]
    inputs: SegmenterInput
    labels: NpArray  # uint8 [b, h, w]
    regions: list[NpArray]  # bool [n, h, w] of each scene: the visible instances
    canvas_regions: NpArray  # bool [b, slots, H, W]: the same on the canvas
    canvas_valid: NpArray  # bool [b, slots]


@dataclass
class Quality:
    """Sums over scenes; `record` gives the means."""

    scenes: int = 0
    points: int = 0
    masks: int = 0
    hits: list[bool] = field(default_factory=list)  # of each region: is a point in it?
    best: list[float] = field(default_factory=list)  # of each region: the best mask's IoU
    purity: list[float] = field(default_factory=list)  # of each mask: share in its main region
    confusion: NpArray | int = 0

    def add(self, scenes: Scenes, masks: MaskProposals, confusion: NpArray) -> None:
        """Add a batch."""
        points, point_valid, pixels, valid = map(
            np.asarray, (masks.points, masks.point_valid, masks.masks, masks.valid)
        )
        self.scenes += len(valid)
        self.points += int(point_valid.sum())
        self.masks += int(valid.sum())
        self.confusion = self.confusion + confusion
        for row, regions in enumerate(scenes.regions):
            size = np.array(regions.shape[:0:-1])  # (width, height)
            x, y = np.minimum(points[row][point_valid[row]] * size, size - 1).astype(int).T
            large = regions.sum(axis=(1, 2)) >= _MIN_REGION
            self.hits += np.any(regions[:, y, x], axis=1)[large].tolist()
            found = (
                pixels[row][valid[row]].astype(np.float32).reshape(-1, np.prod(pixels.shape[2:]))
            )
            wanted = scenes.canvas_regions[row, : len(regions)].astype(np.float32)
            wanted = wanted.reshape(len(regions), -1)
            both = found @ wanted.T
            area, wanted_area = found.sum(axis=1), wanted.sum(axis=1)
            union = area[:, None] + wanted_area[None] - both
            ious = both / np.maximum(union, 1)
            self.best += (ious.max(axis=0, initial=0.0))[large].tolist()
            self.purity += (both.max(axis=1, initial=0.0) / np.maximum(area, 1)).tolist()

    def record(self, seen: tuple[int, ...], unseen: tuple[int, ...]) -> dict[str, float]:
        """Means over scenes, regions and masks, and IoU of the classes in per cent."""
        best, confusion = np.array(self.best), np.asarray(self.confusion)
        all_classes = {"miou": 100 * float(scores(confusion)["miou"])}
        if seen and unseen:
            first, second = (subset_miou(confusion, classes) for classes in (seen, unseen))
            all_classes |= {
                "seen": 100 * first,
                "unseen": 100 * second,
                "harmonic_mean": 100 * harmonic_mean(first, second),
            }
        return all_classes | {
            "points": self.points / self.scenes,
            "masks": self.masks / self.scenes,
            "regions_hit": float(np.mean(self.hits)),
            "recall_0.5": float((best > 0.5).mean()),
            "recall_0.7": float((best > 0.7).mean()),
            "masks_per_region": self.masks / len(best),
            "purity": float(np.mean(self.purity)) if self.purity else float("nan"),
        }


def largest(regions: NpArray, count: int) -> NpArray:
    """The ``count`` largest of regions [n, h, w], in their order."""
    chosen = np.argsort(-regions.sum(axis=(1, 2)), kind="stable")[:count]
    return regions[np.sort(chosen)]


def class_areas(label: NpArray, ignore_label: int) -> NpArray:
    """The connected areas [n, h, w] of one class in a label map [h, w]."""
    areas = []
    for value in np.setdiff1d(label, [ignore_label]):
        numbers, count = cast(Any, ndimage.label(label == value))
        areas += [numbers == number for number in range(1, count + 1)]
    areas = [area for area in areas if area.sum() >= _MIN_REGION]
    return np.stack(areas) if areas else np.zeros((0, *label.shape), bool)


class Lab:
    """A SAM-MI and scenes.

    Args:
        folder: the model folder.
        dataset: of scenes.
        batch_size: scenes at a time; where it is above 1, all are of one size, and it divides
            their number.
    """

    def __init__(self, folder: str, dataset: Dataset, batch_size: int = 1):
        model = read_model(folder, ["sammi"])
        self.config: SegmenterConfig = model.config
        self._layout = view_layout(self.config)
        self._graphdef, state = nnx.split(build(model_maker(self.config), model.params))
        self.state = jax.device_put(state)
        self.dataset = dataset
        self._text = load(folder).encode_classes(dataset.class_names)
        self.scenes = [
            self._batch(range(start, start + batch_size))
            for start in range(0, len(dataset.source), batch_size)
        ]
        self._see = jax.jit(self._see_batch)
        self._answer = jax.jit(self._answer_batch, static_argnames="size")
        self.seen = [self._see(self.state, batch.inputs) for batch in self.scenes]

    @property
    def mask_config(self) -> MaskConfig:
        """The model's own."""
        assert self.config.masks is not None
        return self.config.masks

    @property
    def has_parts(self) -> bool:
        """Whether the data set knows parts of its regions."""
        return hasattr(self.dataset.source, "regions")

    def _regions(self, index: int, kind: str, label: NpArray) -> NpArray:
        source: Any = self.dataset.source
        if self.has_parts:
            return source.regions(index, kind)
        return class_areas(label, self.dataset.ignore_label)

    def _batch(self, indices: range) -> Scenes:
        examples = [self.dataset.source[index] for index in indices]
        images = np.stack([np.asarray(e["image"]) for e in examples])
        inputs = [segmenter_input(image, self.config) for image in images]
        labels = np.stack([np.asarray(e["label"]) for e in examples])
        regions = [
            largest(self._regions(index, "true", label), _SLOTS)
            for index, label in zip(indices, labels, strict=True)
        ]
        placed = [canvas_masks(r, r.shape[1:], self.config, _SLOTS) for r in regions]
        masks, valid, _ = (np.concatenate(parts) for parts in zip(*placed, strict=True))
        return Scenes(images, stack_inputs(inputs), labels, regions, masks, valid)

    def _see_batch(self, state: nnx.State, inputs: SegmenterInput) -> Seen:
        module: Any = nnx.merge(self._graphdef, state)
        features = module.encode_views(image_views(inputs, self.config, self._layout))
        evidence, _ = module.class_evidence(features, self._text)
        distribution = class_distribution(evidence, self._text.mask)
        sam_input = sam_views(inputs.sam_image, inputs.sam_size)
        return Seen(
            stitch(distribution, self._layout),
            stitch(features.high[1], self._layout),
            SamEmbeddings(module.sam.encode_image(sam_input.images), sam_input.sizes),
        )

    def _answer_batch(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        masks: MaskProposals,
        size: tuple[int, int],
    ) -> Array:
        """Class probabilities [b, t, h, w] at the image's size."""
        module: Any = nnx.merge(self._graphdef, state)
        inputs = replace(
            inputs, masks=masks.masks, mask_valid=masks.valid, mask_quality=masks.quality
        )
        out = forward_input(module, inputs, self._text, self._layout)
        scores = ViewScores(out.logits, out.proposals, out.regions)
        return resize_scores(blend_logits(scores, self.config, self._layout), size)

    def sam_masks(self, seen: Seen, prompts: PointPrompts, config: MaskConfig) -> MaskProposals:
        """SAM's masks for points, filtered and, with ``config.smagg``, aggregated."""
        module: Any = nnx.merge(self._graphdef, self.state)
        grid = seen.distribution.shape[1]
        points, side = prompts.cells / grid, MASK_SCALE * grid
        masks, valid, quality = segment_points(
            module.sam, config.filter, points, prompts.valid, seen.embeddings, (side, side)
        )
        found = MaskProposals(points, prompts.valid, masks, valid, quality)
        return found if config.smagg is None else self._aggregate(seen, found, config.smagg)

    def from_points(self, config: MaskConfig) -> Callable[[int], MaskProposals]:
        """The source of masks that ``config`` describes: TSPP or a grid; with SMAgg or not."""
        make = jax.jit(
            lambda seen: self.sam_masks(seen, choose_points(config, seen.distribution), config)
        )
        return lambda number: make(self.seen[number])

    def from_random_points(self, count: int, seed: int) -> Callable[[int], MaskProposals]:
        """As many points in every scene, anywhere."""
        config = replace(self.mask_config, smagg=None)
        make = jax.jit(lambda seen, prompts: self.sam_masks(seen, prompts, config))
        rng = np.random.default_rng(seed)

        def masks(number: int) -> MaskProposals:
            seen = self.seen[number]
            batch, grid = seen.distribution.shape[:2]
            cells = jnp.asarray(rng.uniform(0, grid, (batch, count, 2)), jnp.float32)
            ones = jnp.ones((batch, count))
            return make(seen, PointPrompts(cells, ones.astype(bool), ones))

        return masks

    def from_regions(
        self, change: Change | None = None
    ) -> Callable[[float], Callable[[int], MaskProposals]]:
        """The true regions, by the quality that the model is told of each.

        Args:
            change: damages the masks [n, H, W] of an image on the canvas, once, however often they
                are asked for; None: they stay exact.
        """

        def damaged(number: int) -> NpArray:
            out = np.zeros_like(self.scenes[number].canvas_regions)
            for row, (masks, valid) in enumerate(
                zip(
                    self.scenes[number].canvas_regions,
                    self.scenes[number].canvas_valid,
                    strict=True,
                )
            ):
                own = masks[valid]
                changed = (
                    own if change is None else change(own, np.random.default_rng((number, row)))
                )
                out[row, : len(changed)] = changed
            return out

        made = [damaged(number) for number in range(len(self.scenes))]

        def with_quality(quality: float) -> Callable[[int], MaskProposals]:
            def masks(number: int) -> MaskProposals:
                valid = np.asarray(made[number].any(axis=(2, 3)))
                return self._given(made[number], valid, np.full(valid.shape, quality, np.float32))

            return masks

        return with_quality

    def from_parts(self, smagg: SmaggConfig | None) -> Callable[[int], MaskProposals]:
        """The connected parts of the true instances, the largest ones: over-segmentation.

        Args:
            smagg: aggregates them; None: they stay as they are.
        """
        aggregate = None if smagg is None else jax.jit(partial(self._aggregate, smagg=smagg))

        def masks(number: int) -> MaskProposals:
            scenes, placed = self.scenes[number], []
            for row in range(len(scenes.regions)):
                index = number * len(scenes.regions) + row
                parts = largest(self._regions(index, "parts", scenes.labels[row]), _PART_SLOTS)
                told = np.ones(len(parts), np.float32)
                placed.append(canvas_masks(parts, parts.shape[1:], self.config, _PART_SLOTS, told))
            given = self._given(*(np.concatenate(part) for part in zip(*placed, strict=True)))
            return given if aggregate is None else aggregate(self.seen[number], given)

        return masks

    def _aggregate(self, seen: Seen, given: MaskProposals, smagg: SmaggConfig) -> MaskProposals:
        distribution = resize(seen.distribution, seen.shallow.shape[1:3])
        member = group_masks(given.masks, given.valid, seen.shallow, distribution, smagg)
        masks, valid, quality = unite_masks(member, given.masks, given.quality)
        return replace(given, masks=masks, valid=valid, quality=quality)

    def shut(self, number: int) -> MaskProposals:
        """No mask at all."""
        regions = self.scenes[number].canvas_regions
        valid = np.zeros(regions.shape[:2], bool)
        return self._given(np.zeros_like(regions), valid, np.ones(valid.shape, np.float32))

    def _given(self, masks: NpArray, valid: NpArray, quality: NpArray) -> MaskProposals:
        return given_proposals(jnp.asarray(masks), jnp.asarray(valid), jnp.asarray(quality))

    def measure(
        self, source: Callable[[int], MaskProposals], vote: Vote | None = None
    ) -> dict[str, float]:
        """The numbers of a source of masks, its seconds a scene among them.

        Args:
            source: masks of a batch by its number.
            vote: gives the labels; None: the model does, given the masks.
        """
        total, seconds = Quality(), []
        jax.block_until_ready(source(0))  # compiled before the clock runs
        for number, scenes in enumerate(self.scenes):
            began = time.perf_counter()
            masks = jax.block_until_ready(source(number))
            seconds.append((time.perf_counter() - began) / len(scenes.labels))
            given = masks if vote is None else self.shut(number)
            size = scenes.labels.shape[1:]
            probabilities = np.asarray(self._answer(self.state, scenes.inputs, given, size=size))
            texts = probabilities.argmax(axis=1) if vote is None else vote(probabilities, masks)
            labels = np.array(self.dataset.merge)[texts]
            confusion = confusion_matrix(
                labels, scenes.labels, self.dataset.num_classes, self.dataset.ignore_label
            )
            total.add(scenes, masks, confusion)
        record = total.record(self.dataset.seen, self.dataset.unseen)
        return record | {"seconds": float(np.median(seconds))}


def hard_vote(probabilities: NpArray, masks: MaskProposals) -> NpArray:
    """Each mask gets one class, that of its largest mean probability; small masks lie on top."""
    labels = probabilities.argmax(axis=1)
    pixels, valid = np.asarray(masks.masks), np.asarray(masks.valid)
    # Where the pixels of the answer lie in the masks' frame.
    rows, columns = (
        (np.arange(length) * side) // length
        for length, side in zip(labels.shape[1:], pixels.shape[2:], strict=True)
    )
    for row, of_classes in enumerate(probabilities):
        own = pixels[row][valid[row]][:, rows[:, None], columns]
        own = own[np.argsort(-own.sum(axis=(1, 2)), kind="stable")]
        flat = own.reshape(len(own), labels[row].size).astype(np.float32)
        classes = (flat @ of_classes.reshape(len(of_classes), -1).T).argmax(axis=1)
        for mask, index in zip(own, classes, strict=True):
            labels[row][mask] = index
    return labels
