"""Images a second of the training input pipeline: decode, resize, crop, mirror, batches of 4.

Images of 640 x 480 (JPEG, quality 90) and their labels (PNG) are generated, prepared as ADE20K-150
by `sammi_jax.data.prepare` and read as in training, in crops of 384. "Plain decode" only reads the
same source, in one thread. Runs of all kinds alternate; the medians are printed.

Command:   python benchmarks/pipeline.py [--images 256] [--runs 5]
Hardware:  two CPU cores, 2 minutes
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sammi_jax.data.input.augment import TrainCrop
from sammi_jax.data.input.pipeline import batch_stream, iterate
from sammi_jax.data.prepare.write import prepare
from sammi_jax.data.sources import PreparedSource

SIZE, CROP, BATCH_SIZE, NUM_CLASSES, IGNORE = (480, 640), 384, 4, 150, 255
NUM_FILES, WARM_UP = 64, 12  # batches: more than are made ahead
Timing = tuple[float, float | None]  # images/s; CPU milliseconds an image, where they are known


def generate_files(folder: Path, quality: int = 90, count: int = NUM_FILES) -> None:
    """Images with structure at every scale, and labels of a few dozen regions.

    Args:
        folder: to which ADE20K's folder is added.
        quality: of the JPEG files.
        count: how many.
    """
    root = folder / "ADEChallengeData2016"
    images, labels = root / "images/validation", root / "annotations/validation"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.zeros((*SIZE, 3), np.float32)
        for cells, strength in ((4, 60), (16, 40), (64, 25), (240, 12)):
            noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel])
                image[..., channel] += np.asarray(
                    layer.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
                )
        pixels = np.clip(image + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{number:04d}.jpg", quality=quality)
        sites = rng.uniform(0, 1, (30, 2)) * SIZE
        rows, columns = np.indices(SIZE)
        distance = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in sites]
        regions = rng.integers(0, NUM_CLASSES + 1, 30)[np.argmin(distance, axis=0)]
        Image.fromarray(regions.astype(np.uint8)).save(labels / f"{number:04d}.png")


def plain_decode(source: PreparedSource, num_images: int) -> Timing:
    """Images and labels as arrays, one after the other."""
    cpu, began = time.process_time(), time.perf_counter()
    for index in range(num_images):
        source[index % len(source)]
    return _timing(num_images, began, cpu)


def pipeline(source: PreparedSource, num_images: int, workers: int) -> Timing:
    """Training batches; the first ones are not timed."""
    crop = TrainCrop(CROP, IGNORE)
    batches = iterate(batch_stream(source, [crop], batch_size=BATCH_SIZE, seed=0), 0, workers)
    for batch in itertools.islice(batches, WARM_UP):
        assert batch["image"].shape == (BATCH_SIZE, CROP, CROP, 3)
    cpu, began = time.process_time(), time.perf_counter()
    for _ in itertools.islice(batches, num_images // BATCH_SIZE):
        pass
    found = _timing(num_images // BATCH_SIZE * BATCH_SIZE, began, cpu)
    batches.close()
    return found if workers == 0 else (found[0], None)  # CPU time of other processes is unknown


def _timing(num_images: int, began: float, cpu: float) -> Timing:
    used = time.process_time() - cpu
    return num_images / (time.perf_counter() - began), 1000 * used / num_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256, help="images a run")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_files(folder)
        prepared = prepare(
            "ade20k_150", folder, folder / "data", splits=["validation"], allow_incomplete=True
        )
        source = PreparedSource(Path(prepared), "validation")
        kinds: dict[str, Callable[[], Timing]] = {
            "plain decode, one thread": lambda: plain_decode(source, options.images),
            "pipeline, workers = 0 (threads)": lambda: pipeline(source, options.images, 0),
            "pipeline, workers = 2": lambda: pipeline(source, options.images, 2),
        }
        load = os.getloadavg()[0]
        found = {kind: [] for kind in kinds}
        for _ in range(options.runs):
            for kind, measure in kinds.items():
                found[kind].append(measure())
    print_table(found)
    print(
        f"\n{os.cpu_count()} CPUs; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


def print_table(found: dict[str, list[Timing]]) -> None:
    print("| | images/s (median) | lowest to highest | of plain decode | CPU ms an image |")
    print("|---|---|---|---|---|")
    medians = {kind: statistics.median(rate for rate, _ in runs) for kind, runs in found.items()}
    plain = next(iter(medians.values()))
    for kind, runs in found.items():
        rates = sorted(rate for rate, _ in runs)
        used = [cpu for _, cpu in runs if cpu is not None]
        cpu = f"{statistics.median(used):.1f}" if used else "-"
        ratio = f"{medians[kind] / plain:.2f}"
        span = f"{rates[0]:.0f} to {rates[-1]:.0f}"
        print(f"| {kind} | {medians[kind]:.0f} | {span} | {ratio} | {cpu} |")


if __name__ == "__main__":
    main()
