"""One trained SAM-MI on scenes of OpenShapes, with masks from many sources.

A source of masks (points of some kind and SAM, true instances, damaged ones) is measured by itself,
against the scenes' regions, and by what the model answers when it is given these masks.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.model import MaskConfig, SegmenterConfig, SmaggConfig, view_layout
from sammi_jax.data.openshapes import IGNORE_LABEL, OpenShapes
from sammi_jax.evaluation.metrics import (
    confusion_matrix,
    harmonic_mean,
    scores,
    subset_miou,
)
from sammi_jax.inference.forward import ViewScores, blend_logits, resize_scores, sam_views
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
from sammi_jax.ops.clip_image import clip_views
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, NpArray
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import read_model
from sammi_jax.weights.params import build

_MIN_REGION = 20  # pixels of the image: smaller regions are not counted
Vote = Callable[[NpArray, MaskProposals], NpArray]  # of model without masks, and masks, to labels
Change = Callable[[NpArray, np.random.Generator], NpArray]
_SLOTS = 32  # regions of a scene that the arrays have room for
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
        first, second = (subset_miou(confusion, classes) for classes in (seen, unseen))
        return {
            "points": self.points / self.scenes,
            "masks": self.masks / self.scenes,
            "regions_hit": float(np.mean(self.hits)),
            "recall_0.5": float((best > 0.5).mean()),
            "recall_0.7": float((best > 0.7).mean()),
            "masks_per_region": self.masks / len(best),
            "purity": float(np.mean(self.purity)) if self.purity else float("nan"),
            "seen": 100 * first,
            "unseen": 100 * second,
            "harmonic_mean": 100 * harmonic_mean(first, second),
            "miou": 100 * float(scores(confusion)["miou"]),
        }


class Lab:
    """A SAM-MI and scenes.

    Args:
        folder: the model folder.
        split: of OpenShapes.
        count: how many scenes, from the first one.
        batch_size: scenes at a time; it divides ``count``.
    """

    def __init__(self, folder: str, split: str, count: int, batch_size: int = 20):
        model = read_model(folder, ["sammi"])
        self.config: SegmenterConfig = model.config
        self._layout = view_layout(self.config)
        self._graphdef, state = nnx.split(build(model_maker(self.config), model.params))
        self.state = jax.device_put(state)
        self.source = source = OpenShapes(split, "os48")
        self._view = source.view
        self._text = load(folder).encode_classes(source.view.class_names)
        self.scenes = [
            self._batch(source, range(start, start + batch_size))
            for start in range(0, count, batch_size)
        ]
        self._see, self._answer = jax.jit(self._see_batch), jax.jit(self._answer_batch)
        self.seen = [self._see(self.state, batch.inputs) for batch in self.scenes]

    @property
    def mask_config(self) -> MaskConfig:
        """The model's own."""
        assert self.config.masks is not None
        return self.config.masks

    def _batch(self, source: OpenShapes, indices: range) -> Scenes:
        examples = [source[index] for index in indices]
        inputs = [segmenter_input(np.asarray(e["image"]), self.config) for e in examples]
        regions = [source.regions(index, "true") for index in indices]
        placed = [canvas_masks(r, r.shape[1:], self.config, _SLOTS) for r in regions]
        labels = np.stack([np.asarray(e["label"]) for e in examples])
        masks, valid, _ = (np.concatenate(parts) for parts in zip(*placed, strict=True))
        return Scenes(stack_inputs(inputs), labels, regions, masks, valid)

    def _see_batch(self, state: nnx.State, inputs: SegmenterInput) -> Seen:
        module: Any = nnx.merge(self._graphdef, state)
        views = clip_views(inputs.canvas[:, None], self.config.clip_size)
        features = module.encode_views(views)
        logits = module.tspp.class_logits(features.low, self._text.features)
        sam_input = sam_views(inputs.sam_image, inputs.sam_size)
        embeddings = SamEmbeddings(module.sam.encode_image(sam_input.images), sam_input.sizes)
        distribution = class_distribution(logits, self._text.mask)
        return Seen(distribution[:, 0], features.high[1][:, 0], embeddings)

    def _answer_batch(
        self, state: nnx.State, inputs: SegmenterInput, masks: MaskProposals
    ) -> Array:
        """Class probabilities [b, t, h, w] at the image's size."""
        module: Any = nnx.merge(self._graphdef, state)
        views = clip_views(inputs.canvas[:, None], self.config.clip_size)
        out = module(views, None, self._text, layout=self._layout, pooling_size=1, proposals=masks)
        scores = ViewScores(out.logits, out.proposals, out.regions)
        blended = blend_logits(scores, self.config, self._layout)
        return resize_scores(blended, self.scenes[0].labels.shape[1:])

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
        self, change: Change | None = None, quality: float = 1.0
    ) -> Callable[[int], MaskProposals]:
        """The true instances.

        Args:
            change: damages the masks [n, h, w] of a scene; None: they stay exact.
            quality: that the model is told of each mask.
        """

        def masks(number: int) -> MaskProposals:
            scenes, placed = self.scenes[number], []
            for row, regions in enumerate(scenes.regions):
                rng = np.random.default_rng((number, row))
                given = (regions if change is None else change(regions, rng))[:_SLOTS]
                told = np.full(len(given), quality, np.float32)
                placed.append(canvas_masks(given, given.shape[1:], self.config, _SLOTS, told))
            return self._given(*(np.concatenate(part) for part in zip(*placed, strict=True)))

        return masks

    def from_parts(self, smagg: SmaggConfig | None) -> Callable[[int], MaskProposals]:
        """The connected parts of the true instances, the largest ones: over-segmentation.

        Args:
            smagg: aggregates them; None: they stay as they are.
        """
        aggregate = None if smagg is None else jax.jit(partial(self._aggregate, smagg=smagg))

        def masks(number: int) -> MaskProposals:
            scenes, placed = self.scenes[number], []
            for row in range(len(scenes.regions)):
                parts = self.source.regions(number * len(scenes.regions) + row, "parts")
                largest = np.argsort(-parts.sum(axis=(1, 2)), kind="stable")[:_PART_SLOTS]
                parts = parts[np.sort(largest)]
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
            probabilities = np.asarray(self._answer(self.state, scenes.inputs, given))
            labels = probabilities.argmax(axis=1)
            if vote is not None:
                labels = vote(probabilities, masks)
            confusion = confusion_matrix(
                labels, scenes.labels, self._view.num_classes, IGNORE_LABEL
            )
            total.add(scenes, masks, confusion)
        record = total.record(self._view.seen, self._view.unseen)
        return record | {"seconds": float(np.median(seconds))}


def hard_vote(probabilities: NpArray, masks: MaskProposals) -> NpArray:
    """Each mask gets one class, that of its largest mean probability; small masks lie on top."""
    labels = probabilities.argmax(axis=1)
    pixels, valid = np.asarray(masks.masks), np.asarray(masks.valid)
    factor = labels.shape[1] // pixels.shape[2]
    for row, of_classes in enumerate(probabilities):
        own = pixels[row][valid[row]].repeat(factor, axis=1).repeat(factor, axis=2)
        for mask in own[np.argsort(-own.sum(axis=(1, 2)), kind="stable")]:
            if mask.any():
                labels[row][mask] = of_classes[:, mask].mean(axis=1).argmax()
    return labels
