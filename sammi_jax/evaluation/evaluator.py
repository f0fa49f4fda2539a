"""A model evaluated on a labeled data set: batches in, one record of numbers out."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from sammi_jax.config.experiment import EvalConfig
from sammi_jax.config.model import SegmenterConfig, check_config, view_layout
from sammi_jax.data.catalogue import Dataset
from sammi_jax.data.checks import check_label
from sammi_jax.data.input.prefetch import prefetch
from sammi_jax.errors import SammiError
from sammi_jax.evaluation.background import Vocabulary, choose_vocabulary
from sammi_jax.evaluation.buckets import EvalBatch, plan_batches
from sammi_jax.evaluation.given_masks import GivenMasks
from sammi_jax.evaluation.panels import ImageWriter
from sammi_jax.evaluation.partial import PartialResult
from sammi_jax.evaluation.program import (
    Predictor,
    Readout,
    Target,
    Variant,
    make_network,
    make_readout,
    make_target,
)
from sammi_jax.evaluation.report import result_record
from sammi_jax.evaluation.totals import Counts, add_counts, zero_sums
from sammi_jax.inference.inputs import SegmenterInput, stack_inputs
from sammi_jax.object_store import AnyPath
from sammi_jax.parallel.batch import check_batch_size
from sammi_jax.parallel.mesh import batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """This process's share of one batch."""

    inputs: list[SegmenterInput]  # one for each variant
    target: Target
    examples: list[dict[str, Any]]  # without the copies that fill up the batch


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    config: EvalConfig,
    mesh: Mesh,
    workdir: AnyPath,
    identity: dict[str, Any],
) -> dict[str, Any]:
    """All numbers of one data set, as JSON's types: `Evaluation`, once."""
    return Evaluation(predictor, dataset, config, mesh)(workdir, identity)


class Evaluation:
    """Evaluates a model on a data set; a second call, with new weights, compiles nothing.

    Args:
        predictor: the model.
        dataset: the labeled images.
        config: batch size, augmentation, background, output.
        mesh: the devices; every process of a job makes and calls this with the same arguments.

    Raises:
        SammiError: the batch does not divide over the devices, a canvas not into windows, or the
            data set has one class.
    """

    def __init__(self, predictor: Predictor, dataset: Dataset, config: EvalConfig, mesh: Mesh):
        check_batch_size(config.batch_size, mesh)
        if dataset.num_classes < 2:
            raise SammiError(
                f"{dataset.name}: with one class every prediction is right; name a class for the "
                "other pixels, such as background"
            )
        self._predictor, self._dataset, self._config = predictor, dataset, config
        self._mesh = mesh
        variants = make_variants(predictor.config, config)
        self._vocabulary = choose_vocabulary(dataset, config)
        self._plan = plan_batches(image_sizes(dataset), config.batch_size, config.max_buckets)
        self._run = _Run(predictor, dataset, config, self._vocabulary, variants, mesh)

    def __call__(self, workdir: AnyPath, identity: dict[str, Any]) -> dict[str, Any]:
        """All numbers, as JSON's types.

        Args:
            workdir: for images, and for what an interrupted evaluation resumes from.
            identity: what distinguishes this evaluation from others of the same data set (JSON's
                types).

        Raises:
            SammiError: an image whose label has another size or an unknown value.
        """
        dataset, config, plan, run = self._dataset, self._config, self._plan, self._run
        partial = PartialResult(
            workdir / "partial" / f"{dataset.name.replace('/', '_')}.npz",
            identity | {"batches": [[list(b.shape), list(b.indices)] for b in plan]},
        )
        sums, done = partial.load(zero_sums(dataset.num_classes))
        images = ImageWriter(workdir, dataset, config)
        run.begin()
        batches = prefetch(run.read(batch) for batch in plan[done:])
        bar = tqdm(
            total=len(plan), initial=done, desc=dataset.name, unit="batch", disable=None, leave=None
        )
        before: Counts | None = None  # of the batch before
        for number, batch in enumerate(batches, done + 1):
            counts, prediction, proposals = run.step(plan[number - 1], batch)
            images.add(batch.examples, prediction, proposals)
            if before is not None:  # added now, while the device computes the next batch
                sums = add_counts(sums, before)
                if (number - 1) % config.save_every == 0:
                    partial.save(sums, number - 1)
            before = counts
            bar.update()
        if before is not None:
            sums = add_counts(sums, before)
        bar.close()
        record = result_record(
            dataset,
            self._vocabulary,
            sums,
            boundary=config.boundary,
            has_masks=self._predictor.config.masks is not None,
            timing=run.timing(),
        )
        partial.remove()
        labeled = [row["name"] for row in record["classes"] if row["label_pixels"]]
        if len(labeled) == 1:
            warnings.warn(
                f"{dataset.name}: its labels hold {labeled[0]!r} alone, so all other classes are "
                "left out of mIoU; masks of 0 and 255 must be written as 0 and 1",
                stacklevel=2,
            )
        return record


def make_variants(model: SegmenterConfig, config: EvalConfig) -> list[Variant]:
    """One variant for each canvas and, with ``flip``, its mirror image.

    Raises:
        SammiError: a canvas does not divide into windows, or there are scales without windows.
    """
    configs = [model]
    if config.scales:
        if model.sliding is None:
            raise SammiError("eval.scales: this model has no sliding windows; leave scales out")
        configs = [
            dataclasses.replace(model, sliding=dataclasses.replace(model.sliding, output_size=side))
            for side in config.scales
        ]
    for each in configs:
        check_config(each)
    flips = (False, True) if config.flip else (False,)
    return [Variant(each, view_layout(each), flip) for each in configs for flip in flips]


def image_sizes(dataset: Dataset) -> list[tuple[int, int]]:
    """(height, width) of every label map; images are not decoded where the source can avoid it."""
    source = dataset.source
    glance = getattr(source, "glance", None)
    if glance is not None:
        return [glance(index).label.shape for index in range(len(source))]
    return [source[index]["label"].shape for index in range(len(source))]


class _Run:
    """The compiled programs of one evaluation, and the clock."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        config: EvalConfig,
        vocabulary: Vocabulary,
        variants: Sequence[Variant],
        mesh: Mesh,
    ):
        self._predictor, self._dataset, self._config = predictor, dataset, config
        self._vocabulary, self._variants, self._mesh = vocabulary, variants, mesh
        self._given = GivenMasks(dataset, predictor.config, config)
        self.begin()
        self._network = make_network(predictor, variants, mesh)
        self._readout = make_readout(
            predictor,
            variants,
            Readout(
                vocabulary.merge,
                dataset.num_classes,
                config.class_chunk,
                vocabulary.background,
                None if vocabulary.background is None else config.background_threshold,
                config.boundary,
            ),
            mesh,
        )
        self._compiled: dict[Any, Any] = {}
        self._sides = self._canvas_sides()

    def begin(self) -> None:
        """Put the model's present weights on the devices, and start the clock."""
        put = lambda tree: jax.device_put(tree, replicated(self._mesh))  # noqa: E731
        self._state = put(self._predictor.state)
        self._text = put(self._predictor.encode_classes(self._vocabulary.class_names))
        self._compile_s, self._images, self._began = 0.0, 0, time.perf_counter()

    def _canvas_sides(self) -> list[int]:
        """Side of the blended score maps of every variant."""
        example = np.zeros((64, 64, 3), np.uint8)
        masks = None if self._config.masks == "own" else np.zeros((0, 64, 64), bool)
        sides = []
        for variant in self._variants:
            inputs = self._prepare({"image": example, "masks": masks}, variant)

            def scores(state: Any, inputs: Any, layout: Any = variant.layout) -> Any:
                out = self._predictor.views(state, inputs, self._text, layout)
                return self._predictor.blend(out, layout)

            sides.append(jax.eval_shape(scores, self._state, inputs).shape[-1])
        return sides

    def read(self, batch: EvalBatch) -> HostBatch:
        """Decode and prepare this process's share of a batch (host arrays only)."""
        size = self._config.batch_size // jax.process_count()
        start = jax.process_index() * size
        own = batch.indices[start : start + size]
        # A process without a share computes a copy that does not count: all must take part.
        examples = [self._example(index) for index in (own or batch.indices[:1])]
        shown = [examples[min(i, len(examples) - 1)] for i in range(size)]
        inputs = [
            stack_inputs([self._prepare(example, variant) for example in shown])
            for variant in self._variants
        ]
        labels = [example["label"] for example in examples]
        target = make_target(
            labels,
            [label.shape for label in labels],
            self._sides,
            self._dataset.ignore_label,
            batch.shape,
            size,
        )
        if not own:
            target = dataclasses.replace(target, present=np.zeros(size, bool))
        return HostBatch(inputs, target, examples[: len(own)])

    def _prepare(self, example: dict[str, Any], variant: Variant) -> SegmenterInput:
        """One image, and the masks that are given with it, as the variant shows them."""
        image, masks = example["image"], example["masks"]
        if variant.flip:
            image, masks = image[:, ::-1], None if masks is None else masks[:, :, ::-1]
        if masks is None:
            return self._predictor.prepare(image, variant.config)
        quality = np.full(len(masks), self._given.quality, np.float32)
        return self._predictor.prepare(image, variant.config, masks, self._given.num_slots, quality)

    def _example(self, index: int) -> dict[str, Any]:
        example = self._dataset.source[index]
        image, label, name = example["image"], example["label"], example["file_name"]
        check_label(
            label, image, self._dataset.num_classes, self._dataset.ignore_label,
            f"{self._dataset.name}: {name}",
        )  # fmt: skip
        masks = self._given(index, image.shape[:2])
        if self._vocabulary.ignored_class is not None:
            label = np.where(
                label == self._vocabulary.ignored_class, self._dataset.ignore_label, label
            )
        return example | {"label": label, "masks": masks}

    def step(self, plan: EvalBatch, batch: HostBatch) -> tuple[Counts, Any, Any]:
        """Start both programs: counts, prediction, proposals.

        Compiles at the first batch, and at the first one of each bucket.
        """
        sharding = batch_sharding(self._mesh)
        put = lambda x: jax.make_array_from_process_local_data(sharding, x)  # noqa: E731
        inputs, target = jax.tree.map(put, (batch.inputs, batch.target))
        arguments = (self._state, inputs, self._text)
        scores = self._call("network", self._network, *arguments)
        counts, prediction = self._call(plan.shape, self._readout, scores, self._text.mask, target)
        self._images += len(plan.indices)
        return counts, prediction, scores[0].proposals

    def _call(self, key: Any, function: Any, *args: Any) -> Any:
        if key not in self._compiled:
            began = time.perf_counter()
            self._compiled[key] = function.lower(*args).compile()
            seconds = time.perf_counter() - began
            self._compile_s += seconds
            shape = "" if key == "network" else f" for labels up to {key[0]} x {key[1]}"
            name = "network" if key == "network" else "read-out"
            tqdm.write(f"{self._dataset.name}: compiled the {name}{shape} in {seconds:.1f} s")
        return self._compiled[key](*args)

    def timing(self) -> dict[str, Any]:
        """Compilations, their seconds, and images a second of this run without these."""
        seconds = time.perf_counter() - self._began - self._compile_s
        return {
            "num_compilations": len(self._compiled),
            "compile_s": self._compile_s,
            "images_per_s": self._images / seconds if self._images else None,
        }
