"""What decoding fewer classes costs in mIoU and gains in time: the bundled model on os168.

Each row keeps so many of the 168 classes of an image (`keep_classes`), those of largest cosine.
CPU time is that of a warm `segment` of one image, over all threads.

Run: ``python benchmarks/class_reduction.py [--images 100]``, 4 minutes on two CPU cores.
"""

import argparse
import statistics
import time

import numpy as np

import sammi_jax
from sammi_jax.data.openshapes import IGNORE_LABEL, OpenShapes
from sammi_jax.evaluation import confusion_matrix, scores

SPLITS = ("val_seen", "val_unseen")
KEPT = (None, 96, 84, 64, 48, 32, 16)


def measure(keep: int | None, images: int) -> tuple[list[float], float]:
    """The mIoU of each split and the median CPU seconds of an image."""
    model = sammi_jax.load(keep_classes=keep)
    mious, seconds = [], []
    for split in SPLITS:
        source = OpenShapes(split, "os168")
        names = source.view.class_names
        confusion = np.zeros((len(names), len(names)), np.int64)
        for index in range(images):
            example = source[index]
            image, truth = np.asarray(example["image"]), np.asarray(example["label"])
            began = time.process_time()
            found = model.segment(image, names, keep_scores=False)
            seconds.append(time.process_time() - began)
            confusion += confusion_matrix(found.labels, truth, len(names), IGNORE_LABEL)
        mious.append(float(scores(confusion)["miou"]))
    return mious, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100, help="of each split")
    images = parser.parse_args().images
    print("| classes kept | " + " | ".join(f"{split}: mIoU" for split in SPLITS), end="")
    print(" | loss, points | CPU ms an image |\n|---|---|---|---|---|")
    whole: list[float] = []
    for keep in KEPT:
        mious, seconds = measure(keep, images)
        whole = whole or mious
        loss = 100 * np.subtract(whole, mious)
        print(
            f"| {keep or 'all 168'} | "
            + " | ".join(f"{100 * miou:.2f}" for miou in mious)
            + f" | {', '.join(f'{x:+.2f}' for x in loss)} | {1000 * seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
