"""A model over a labelled data set: one compiled program, fixed batches, one confusion matrix."""

import time
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from sammi_jax.data.catalogue import Dataset
from sammi_jax.evaluation.metrics import confusion_matrix, harmonic_mean, scores, subset_miou
from sammi_jax.images import SegmenterInput, stack_inputs
from sammi_jax.inference import Prediction
from sammi_jax.typing import Float, Int, NpArray


class Predictor(Protocol):
    """What is evaluated: `pipeline.Segmenter` or `pipeline.ZeroShot`."""

    def prepare(self, image: NpArray) -> SegmenterInput:
        """One image as the model wants it."""
        ...

    def predict_batch(self, inputs: SegmenterInput, class_names: Any) -> Prediction:
        """Class scores on the canvas."""
        ...

    def label_map(self, scores: Float[Any, "t h w"], size: tuple[int, int]) -> Int[Any, "h2 w2"]:
        """The best class of each pixel at the image's size."""
        ...


def evaluate(predictor: Predictor, dataset: Dataset, batch_size: int) -> dict[str, Any]:
    """All numbers of one data set, as JSON's types.

    The first batch compiles the program and is not part of ``images_per_s``; its time is
    ``first_batch_s``. Points and masks are means over the images, None for a model without.
    """
    count = len(dataset.source)
    merge = np.array(dataset.merge)
    confusion = np.zeros((dataset.num_classes,) * 2, np.int64)
    points, masks, seconds = [], [], []
    for start in tqdm(range(0, count, batch_size), desc=dataset.name, unit="batch", disable=None):
        began = time.perf_counter()
        real = range(start, min(start + batch_size, count))
        examples = [dataset.source[index] for index in real]
        inputs = [predictor.prepare(example["image"]) for example in examples]
        inputs += inputs[-1:] * (batch_size - len(real))  # the last batch is filled up: one shape
        prediction = predictor.predict_batch(stack_inputs(inputs), dataset.class_names)
        for row, example in enumerate(examples):
            label = example["label"]
            best = np.asarray(predictor.label_map(prediction.probabilities[row], label.shape))
            confusion += confusion_matrix(
                merge[best], label, dataset.num_classes, dataset.ignore_label
            )
        if prediction.proposals is not None:
            proposals = jax.device_get(prediction.proposals)
            points += proposals.point_valid[: len(real)].sum(axis=1).tolist()
            masks += proposals.valid[: len(real)].sum(axis=1).tolist()
        seconds.append(time.perf_counter() - began)
    after_first = count - batch_size
    return {
        "dataset": dataset.name,
        "num_images": count,
        **_metrics(confusion, dataset),
        "points_per_image": float(np.mean(points)) if points else None,
        "masks_per_image": float(np.mean(masks)) if masks else None,
        "first_batch_s": seconds[0],
        "images_per_s": after_first / sum(seconds[1:]) if after_first > 0 else None,
    }


def _metrics(confusion: Int[NpArray, "c c"], dataset: Dataset) -> dict[str, Any]:
    values = scores(confusion)
    iou = [None if np.isnan(v) else float(v) for v in np.asarray(values.pop("iou"))]
    if dataset.unseen:
        seen, unseen = (subset_miou(confusion, part) for part in (dataset.seen, dataset.unseen))
        values |= {"seen_miou": seen, "unseen_miou": unseen}
        values["harmonic_mean"] = harmonic_mean(seen, unseen)
    # NaN (no such pixel in the labels) is no number in JSON
    result: dict[str, Any] = {k: None if np.isnan(v) else float(v) for k, v in values.items()}
    texts: list[list[str]] = [[] for _ in range(dataset.num_classes)]
    for name, index in zip(dataset.class_names, dataset.merge, strict=True):
        texts[index].append(name)
    result["classes"] = [
        {"name": " | ".join(names), "iou": value} for names, value in zip(texts, iou, strict=True)
    ]
    return result
