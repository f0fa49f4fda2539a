"""CPU seconds of a whole `segment` at the sizes of ViT-B, weights drawn at random.

- Points: a SAM-MI with the text-guided points (64 slots) and one with SAM's own grid of 32 x 32
  points in their place; all else is the same.
- Classes: a CAT-Seg that decodes all classes (at most 256 of them, as it does by itself), and one
  with ``keep_classes=80``.

Both of a pair run in turn, in one process; medians of warm runs, with the lowest and the highest.
Images of 480 x 640 in five views.

Run: ``python benchmarks/whole_image.py [--only points]`` (CPU, a quarter of an hour).
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import NoReturn

import numpy as np

from sammi_jax.config.model import SEGMENTER_SIZES, MaskConfig, SegmenterConfig
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.weights.kinds import expected_params

SIZE = (480, 640)
GRID, KEPT, COUNTS, RUNS = 32, 80, (150, 459, 847), 3


def _no_text() -> NoReturn:
    raise AssertionError("embeddings are given, so no text is read")


def build(config: SegmenterConfig, keep_classes: int | None = None) -> Segmenter:
    """A segmenter with weights drawn at random, the same ones each time."""
    rng = np.random.default_rng(0)
    params = {
        path: 0.02 * rng.standard_normal(want.shape, np.float32)
        for path, want in expected_params(config).items()
    }
    return Segmenter(config, params, _no_text, keep_classes=keep_classes)


def in_turn(pair: dict[str, Segmenter], num_classes: int) -> None:
    """Time both on the same image and print a row for each."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    names = [f"class {i}" for i in range(num_classes)]
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for run in range(1 + RUNS):
        for name, model in pair.items():
            texts = rng.standard_normal((num_classes, model.config.clip.embed_dim), np.float32)
            began = time.process_time()
            model.segment(image, names, text_embeddings=texts, keep_scores=False)
            if run:  # the first one compiles
                seconds[name].append(time.process_time() - began)
    first = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        middle = statistics.median(times)
        span = f"{min(times):.1f} to {max(times):.1f}"
        print(f"| {name} | {num_classes} | {middle:.1f} ({span}) | {first / middle:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["points", "classes"])
    only = parser.parse_args().only
    print("| | classes | CPU s an image | the first one's time / this |\n|---|---|---|---|")
    config = SEGMENTER_SIZES["vitb16"]
    if only != "classes":
        masks = MaskConfig()
        guided = build(replace(config, masks=masks))
        grid = build(replace(config, masks=replace(masks, tspp=None, grid_points=GRID)))
        in_turn({"text-guided points": guided, f"grid of {GRID} x {GRID}": grid}, 20)
    if only != "points":
        pair = {"all classes": build(config), f"{KEPT} kept": build(config, KEPT)}
        for count in COUNTS:
            in_turn(pair, count)


if __name__ == "__main__":
    main()
