"""The bundled model on generated scenes: does this installation compute what it should?"""

import time
from typing import Any

import numpy as np

from sammi_jax.data.openshapes import IGNORE_LABEL, OpenShapes
from sammi_jax.errors import one_line
from sammi_jax.evaluation import confusion_matrix, scores
from sammi_jax.inference.segmenter import load
from sammi_jax.weights.bundled import DEFAULT

NUM_SCENES = 4
# It is 0.852 in float32, and with weights rounded to bfloat16. Whoever computes something else gets
# most of the 48 classes wrong.
MIN_MIOU = 0.75


def self_test() -> dict[str, Any]:
    """Segment scenes with the bundled model, and compare with their true labels.

    Returns:
        ``passed``; ``miou`` of the scenes together and ``min_miou``, what it must reach;
        ``first_seconds``, loading and the first scene, in which programs are compiled, and
        ``seconds`` of each further one (median); ``error``, one line where it could not run, the
        numbers then None.
    """
    try:
        miou, seconds = _segment_scenes()
    except Exception as error:  # whatever is wrong here is what the user asks for
        return not_run(f"{type(error).__name__}: {one_line(error)}")
    return {
        **not_run(None),
        "passed": miou >= MIN_MIOU,
        "miou": miou,
        "first_seconds": seconds[0],
        "seconds": float(np.median(seconds[1:])),
    }


def not_run(error: str | None) -> dict[str, Any]:
    """The report of `self_test` without results, and why."""
    return {
        "passed": False,
        "miou": None,
        "min_miou": MIN_MIOU,
        "first_seconds": None,
        "seconds": None,
        "error": error,
    }


def _segment_scenes() -> tuple[float, list[float]]:
    """The scenes' mIoU, and the seconds that each took."""
    source = OpenShapes("test_seen", "os48")
    names = source.view.class_names
    confusion, seconds = np.zeros((len(names), len(names)), np.int64), []
    start = time.perf_counter()
    model = load(DEFAULT)
    for index in range(NUM_SCENES):
        example = source[index]
        labels = model.segment(np.asarray(example["image"]), names).labels
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        label = np.asarray(example["label"])
        confusion += confusion_matrix(labels, label, len(names), IGNORE_LABEL)
    return float(scores(confusion)["miou"]), seconds
