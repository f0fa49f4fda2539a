"""One part of `make study`: a trained SAM-MI with masks from many sources, written as JSON."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from lab import Lab, hard_vote
from scipy import ndimage

from sammi_jax.config.model import SmaggConfig, TsppConfig
from sammi_jax.evaluation.given_masks import degrade
from sammi_jax.evaluation.sam_masks import interior_points, segment_points
from sammi_jax.files import write_json
from sammi_jax.inference.segmenter import load
from sammi_jax.inference.towers import load_sam
from sammi_jax.models.proposals import MaskProposals
from sammi_jax.typing import NpArray

_MIN_COMPONENT = 20  # pixels: smaller areas of a class get no prompt in the baseline
_NO_SUPPRESSION = 1e-3  # cells: nothing but the chosen cell is suppressed


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure sources of masks.")
    parser.add_argument("--sammi", required=True, help="SAM-MI model folder")
    parser.add_argument("--noisy", help="the same trained with mask noise: robustness alone")
    parser.add_argument("--catseg", required=True, help="CAT-Seg model folder, trained as long")
    parser.add_argument("--sam", required=True, help="SAM model folder")
    parser.add_argument("--split", required=True, help="of OpenShapes")
    parser.add_argument("--count", type=int, required=True, help="scenes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    lab = Lab(options.sammi, options.split, options.count)
    record: dict[str, Any] = {
        "points": points(lab),
        "smagg": aggregation(lab),
        "robustness": robustness(lab),
        "grounded": grounded(lab, options.catseg, options.sam),
    }
    if options.noisy:
        record["robustness_noisy"] = robustness(Lab(options.noisy, options.split, options.count))
    write_json(options.out, record)


def points(lab: Lab) -> dict[str, Any]:
    """What points are worth: grids, anywhere, TSPP, and TSPP without one of its assumptions."""
    own = replace(lab.mask_config, smagg=None)
    tspp = own.tspp or TsppConfig()
    with_tspp = lambda **changes: lab.from_points(  # noqa: E731
        replace(own, tspp=replace(tspp, **changes))
    )
    count = round(lab.measure(with_tspp())["points"])
    sources = {
        "TSPP": with_tspp(),
        "TSPP, points anywhere in regions": with_tspp(interior=False),
        f"TSPP, several points a region ({count})": with_tspp(
            sigma=_NO_SUPPRESSION, num_points=count
        ),
        "TSPP, suppression of sigma 1.5": with_tspp(sigma=1.5),
        f"random ({count})": lab.from_random_points(count, seed=0),
        "grid 8 x 8": lab.from_points(replace(own, tspp=None, grid_points=8)),
        "grid 16 x 16": lab.from_points(replace(own, tspp=None, grid_points=16)),
        "true instances": lab.from_regions(),
        "no masks": lab.shut,
    }
    return {name: lab.measure(source) for name, source in sources.items()}


def aggregation(lab: Lab) -> dict[str, Any]:
    """SMAgg on SAM's masks, and on true parts: what a SAM gives that over-segments."""
    thresholds = {
        name: None if value is None else SmaggConfig(
            min_feature_similarity=value, min_class_similarity=value
        )
        for name, value in (("off", None), ("0.9", 0.9), ("0.97", 0.97), ("0.99", 0.99))
    }  # fmt: skip
    own = {
        f"own masks, SMAgg {name}": lab.measure(
            lab.from_points(replace(lab.mask_config, smagg=smagg))
        )
        for name, smagg in thresholds.items()
    }
    parts = {
        f"true parts, SMAgg {name}": lab.measure(lab.from_parts(smagg))
        for name, smagg in thresholds.items()
    }
    return own | parts


def changes() -> dict[str, tuple[Callable[[NpArray, np.random.Generator], NpArray], float]]:
    """Ways to damage masks [n, h, w], and the quality that goes with them."""
    degraded = {f"IoU {iou}": (partial(degrade_to, iou=iou), iou) for iou in (0.9, 0.8, 0.6, 0.5)}
    return {
        "exact": (lambda masks, rng: masks, 1.0),
        **degraded,
        "eroded by 2": (lambda m, rng: ndimage.binary_erosion(m, _cross(), iterations=2), 0.75),
        "dilated by 2": (lambda m, rng: ndimage.binary_dilation(m, _cross(), iterations=2), 0.75),
        "shifted by up to 4": (_shift, 0.75),
        "half of them dropped": (lambda m, rng: m[rng.random(len(m)) < 0.5], 1.0),
        "half of them turned around": (_turn, 0.75),
    }


def degrade_to(masks: NpArray, rng: np.random.Generator, iou: float) -> NpArray:
    """Bent outlines."""
    return degrade(masks, iou, rng)


def _cross() -> NpArray:
    """Neighbors within a mask: its own slot, up, down, left, right."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = ndimage.generate_binary_structure(2, 1)
    return structure


def _shift(masks: NpArray, rng: np.random.Generator) -> NpArray:
    moves = rng.integers(-4, 5, (len(masks), 2))
    return np.stack([ndimage.shift(m, move, order=0) for m, move in zip(masks, moves, strict=True)])


def _turn(masks: NpArray, rng: np.random.Generator) -> NpArray:
    """Each mask with probability one half by 180 degrees about the image's center: elsewhere."""
    turned = rng.random(len(masks)) < 0.5
    return np.where(turned[:, None, None], masks[:, ::-1, ::-1], masks)


def robustness(lab: Lab) -> dict[str, Any]:
    """The model and hard voting with damaged masks, its quality told and not."""
    table = {}
    for name, (change, quality) in changes().items():
        table[name] = {
            "soft": lab.measure(lab.from_regions(change, quality))["harmonic_mean"],
            "soft, quality not told": lab.measure(lab.from_regions(change, 0.75))["harmonic_mean"],
            "hard": lab.measure(lab.from_regions(change), vote=hard_vote)["harmonic_mean"],
        }
    return table


def grounded(lab: Lab, catseg: str, sam: str) -> dict[str, float]:
    """In the manner of Grounded-SAM: class maps to objects, each a prompt of SAM, named by class.

    Every connected area of a class in CAT-Seg's answer is an object; SAM gets its most interior
    pixel (the small SAM knows no boxes), and the object's class fills SAM's mask, sure objects on
    top. Pixels without a mask keep CAT-Seg's class.
    """
    model, tower = load(catseg), load_sam(sam)
    names = lab.source.view.class_names

    def labels(number: int, row: int, size: int) -> NpArray:
        image = np.asarray(lab.source[number * size + row]["image"])
        found = model.segment(image, names)
        objects: list[tuple[float, int, NpArray]] = []
        for index in np.unique(found.labels):
            areas, count = cast(Any, ndimage.label(found.labels == index))
            for area in range(1, count + 1):
                mask = areas == area
                if mask.sum() >= _MIN_COMPONENT:
                    objects.append((float(found.scores[index][mask].mean()), int(index), mask))
        answer = found.labels.copy()
        if objects:
            prompts = interior_points(np.stack([mask for _, _, mask in objects]))
            masks, _ = segment_points(tower, image, prompts)
            for place in np.argsort([score for score, _, _ in objects], kind="stable"):
                answer[masks[place]] = objects[place][1]
        return answer

    batches, seconds = iter(range(len(lab.scenes))), []

    def vote(probabilities: NpArray, masks: MaskProposals) -> NpArray:
        del masks
        number, size = next(batches), len(probabilities)
        began = time.perf_counter()
        answers = np.stack([labels(number, row, size) for row in range(size)])
        seconds.append((time.perf_counter() - began) / size)
        return answers

    return lab.measure(lab.shut, vote=vote) | {"seconds": float(np.median(seconds))}


if __name__ == "__main__":
    main()
