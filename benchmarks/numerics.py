"""What the types of weights and products change: scores, labels and mIoU of the bundled model.

Run: ``python benchmarks/numerics.py [--images 64]``. Prints the table of docs/parity.md; every row
is compared with the one in float32, on scenes of OpenShapes' ``val_seen`` and ``val_unseen``. The
bundled weights are in float16; bits that they lack are drawn, so that there is something to round.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.data.openshapes import IGNORE_LABEL, OpenShapes
from sammi_jax.evaluation import confusion_matrix, scores
from sammi_jax.inference.segmenter import load
from sammi_jax.weights.bundled import DEFAULT
from sammi_jax.weights.model_folder import load_tokenizer, read_model, write_model

SPLITS = ("val_seen", "val_unseen")
ROWS = (  # type of the stored weights, of the products
    ("float32", "float32"),
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
)


def predict(folder: str | Path, dtype: str, count: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Scores, labels and the mIoU of each split."""
    model, maps, labels, mious = load(folder, dtype), [], [], []
    for split in SPLITS:
        source = OpenShapes(split, "os48")
        names = source.view.class_names
        confusion = np.zeros((len(names), len(names)), np.int64)
        for index in range(count):
            example = source[index]
            found = model.segment(np.asarray(example["image"]), names)
            maps.append(np.asarray(found.canvas_scores, np.float32))
            labels.append(found.labels)
            truth = np.asarray(example["label"])
            confusion += confusion_matrix(found.labels, truth, len(names), IGNORE_LABEL)
        mious.append(float(scores(confusion)["miou"]))
    return np.stack(maps), np.stack(labels), mious


def write(folder: Path, dtype: str) -> None:
    """The bundled model, whose weights in float16 are the bundled ones again."""
    model, rng = read_model(DEFAULT), np.random.default_rng(0)
    params = {
        path: value * rng.uniform(1 - 2**-12, 1 + 2**-12, value.shape).astype(value.dtype)
        for path, value in model.params.items()
    }
    tokenizer = load_tokenizer(DEFAULT, model.tokenizer_path, model.config)
    assert isinstance(model.config, SegmenterConfig)
    write_model(
        folder, model.kind, model.config, params,
        source={}, licence="Apache-2.0", tokenizer=tokenizer, dtype=dtype,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="of each split")
    count = parser.parse_args().images
    device = jax.devices()[0].device_kind
    print(f"jax {jax.__version__}, {device}, {count} scenes of each split of os48")
    print("| weights | products | scores, rel. L2 | labels that differ | mIoU seen | unseen |")
    print("|---|---|---|---|---|---|")
    reference = None
    with tempfile.TemporaryDirectory() as top:
        for stored, computed in ROWS:
            folder = Path(top, stored)
            if not folder.exists():
                write(folder, stored)
            maps, labels, (seen, unseen) = predict(folder, computed, count)
            reference = reference or (maps, labels)
            error = np.linalg.norm(maps - reference[0]) / np.linalg.norm(reference[0])
            differ = (labels != reference[1]).mean()
            print(
                f"| {stored} | {computed} | {error:.1e} | {differ:.2%} | {seen:.4f} | "
                f"{unseen:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
