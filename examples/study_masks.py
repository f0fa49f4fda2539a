"""One part of `make study`: a trained SAM-MI with masks from many sources, written as JSON."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from lab import Change, Lab, hard_vote
from scipy import ndimage

from sammi_jax.config.model import SmaggConfig, TsppConfig
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.evaluation.given_masks import degrade
from sammi_jax.evaluation.sam_masks import interior_points, segment_points
from sammi_jax.files import write_json
from sammi_jax.inference.segmenter import load
from sammi_jax.inference.towers import load_sam
from sammi_jax.models.proposals import MaskProposals
from sammi_jax.models.smoothing import ORDINARY
from sammi_jax.typing import NpArray

_MIN_COMPONENT = 20  # pixels: smaller areas of a class get no prompt in the baseline
_NO_SUPPRESSION = 1e-3  # cells: nothing but the chosen cell is suppressed


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Measure sources of masks.")
    parser.add_argument("--sammi", required=True, help="SAM-MI model folder")
    parser.add_argument("--noiseless", help="the same trained without mask noise: robustness alone")
    parser.add_argument("--catseg", required=True, help="CAT-Seg model folder, trained as long")
    parser.add_argument("--sam", required=True, help="SAM model folder")
    parser.add_argument("--dataset", required=True, help="such as os48/test_unseen")
    parser.add_argument("--data-dir", type=Path, help="folder of prepared sets")
    parser.add_argument("--count", type=int, required=True, help="images, from the first one")
    parser.add_argument("--batch-size", type=int, default=1, help="images of one size at a time")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    dataset = open_dataset(options.dataset, options.count, options.data_dir)
    lab = Lab(options.sammi, dataset, options.batch_size)
    record: dict[str, Any] = {
        "images": options.count,
        "points": points(lab),
        "smagg": aggregation(lab),
        "robustness": robustness(lab, hard=True),
        "sammi": by_segment(lab, options.sammi),
        "control": by_segment(lab, options.catseg),
        "grounded": grounded(lab, options.catseg, options.sam),
    }
    if options.noiseless:
        noiseless = Lab(options.noiseless, dataset, options.batch_size)
        record["robustness_noiseless"] = robustness(noiseless, hard=False)
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
        "true regions": lab.from_regions()(1.0),
        "no masks": lab.shut,
    }
    return {name: lab.measure(source) for name, source in sources.items()}


def aggregation(lab: Lab) -> dict[str, Any]:
    """SMAgg on SAM's masks, and on true parts: what a SAM gives that over-segments.

    Its thresholds: of the features and of the class distributions.
    """
    thresholds: dict[str, SmaggConfig | None] = {"off": None} | {
        f"{features}, {classes}": SmaggConfig(
            min_feature_similarity=features, min_class_similarity=classes
        )
        for features, classes in ((0.97, 0.97), (0.9, 0.9), (0.5, 0.9), (0.0, 0.97))
    }
    own = {
        f"own masks, SMAgg {name}": lab.measure(
            lab.from_points(replace(lab.mask_config, smagg=smagg))
        )
        for name, smagg in thresholds.items()
    }
    if not lab.has_parts:
        return own
    return own | {
        f"true parts, SMAgg {name}": lab.measure(lab.from_parts(smagg))
        for name, smagg in thresholds.items()
    }


def score(record: dict[str, float]) -> float:
    """The harmonic mean of seen and unseen classes, where that is told apart; else mIoU."""
    return record.get("harmonic_mean", record["miou"])


def changes() -> dict[str, tuple[Change | None, float]]:
    """Ways to damage masks [n, h, w], and the quality that goes with them."""
    degraded = {f"IoU {iou}": (partial(degrade_to, iou=iou), iou) for iou in (0.9, 0.8, 0.6, 0.5)}
    return {
        "exact": (None, 1.0),
        **degraded,
        "eroded by 2%": (partial(_grow, ndimage.binary_erosion), ORDINARY),
        "dilated by 2%": (partial(_grow, ndimage.binary_dilation), ORDINARY),
        "shifted by up to 4%": (_shift, ORDINARY),
        "half of them dropped": (lambda m, rng: m[rng.random(len(m)) < 0.5], 1.0),
        "half of them turned around": (_turn, ORDINARY),
    }


def degrade_to(masks: NpArray, rng: np.random.Generator, iou: float) -> NpArray:
    """Bent outlines."""
    return degrade(masks, iou, rng)


def _grow(operation: Any, masks: NpArray, rng: np.random.Generator) -> NpArray:
    """Erode or dilate by 2% of the image's longer side."""
    del rng
    # Neighbors within a mask: its own slot, up, down, left, right.
    cross = np.zeros((3, 3, 3), bool)
    cross[1] = ndimage.generate_binary_structure(2, 1)
    return operation(masks, cross, iterations=max(1, round(0.02 * max(masks.shape[1:]))))


def _shift(masks: NpArray, rng: np.random.Generator) -> NpArray:
    """Move each mask by up to 4% of the image's longer side, along rows and columns."""
    furthest = max(1, round(0.04 * max(masks.shape[1:])))
    out = np.zeros_like(masks)
    for mask, moved in zip(masks, out, strict=True):
        ndimage.shift(mask, rng.integers(-furthest, furthest + 1, 2), moved, order=0)
    return out


def _turn(masks: NpArray, rng: np.random.Generator) -> NpArray:
    """Each mask with probability one half by 180 degrees about the image's center: elsewhere."""
    turned = rng.random(len(masks)) < 0.5
    return np.where(turned[:, None, None], masks[:, ::-1, ::-1], masks)


def robustness(lab: Lab, hard: bool) -> dict[str, Any]:
    """The model with its own masks and with damaged ones, their quality told and not.

    Args:
        lab: with the model.
        hard: whether hard voting is measured too.
    """
    answer = lambda *source: score(lab.measure(*source))  # noqa: E731
    own = lab.from_points(lab.mask_config)
    table = {"its own masks": {"soft": answer(own)}}
    if hard:
        table["its own masks"]["hard"] = answer(own, hard_vote)
    for name, (change, quality) in changes().items():
        damaged = lab.from_regions(change)
        table[name] = {
            "soft": answer(damaged(quality)),
            "soft, quality not told": answer(damaged(ORDINARY)),
        }
        if hard:
            table[name]["hard"] = answer(damaged(1.0), hard_vote)
    return table


def grounded(lab: Lab, catseg: str, sam: str) -> dict[str, float]:
    """In the manner of Grounded-SAM: class maps to objects, each a prompt of SAM, named by class.

    Every connected area of a class in CAT-Seg's answer is an object; SAM gets its most interior
    pixel (the small SAM knows no boxes), and the object's class fills SAM's mask, sure objects on
    top. Pixels without a mask keep CAT-Seg's class.
    """
    model, tower = load(catseg), load_sam(sam)
    names = lab.dataset.class_names

    def labels(image: NpArray) -> NpArray:
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

    return by_image(lab, labels)


def by_segment(lab: Lab, folder: str) -> dict[str, float]:
    """A model on the same scenes, image by image as a user calls it."""
    model, names = load(folder), lab.dataset.class_names
    return by_image(lab, lambda image: model.segment(image, names).labels)


def by_image(lab: Lab, labels: Callable[[NpArray], NpArray]) -> dict[str, float]:
    """The numbers of what gives labels [h, w] for an image, and its median seconds an image."""
    images = iter([image for batch in lab.scenes for image in batch.images])
    seconds: list[float] = []

    def vote(probabilities: NpArray, masks: MaskProposals) -> NpArray:
        del masks
        answers = []
        for _ in probabilities:
            image = next(images)
            began = time.perf_counter()
            answers.append(labels(image))
            seconds.append(time.perf_counter() - began)
        return np.stack(answers)

    return lab.measure(lab.shut, vote=vote) | {"seconds": float(np.median(seconds))}


if __name__ == "__main__":
    main()
