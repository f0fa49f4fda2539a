"""Results: a record for each data set, in ``results.json``; tables of them, in ``results.md``."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.config.files import config_digest, resolved
from sammi_jax.config.model import SegmenterConfig
from sammi_jax.data.catalogue import Dataset
from sammi_jax.data.vocabulary import vocabulary_hash
from sammi_jax.evaluation.background import Vocabulary
from sammi_jax.evaluation.metrics import boundary_iou, harmonic_mean, scores, subset_miou
from sammi_jax.evaluation.totals import Counts
from sammi_jax.files import write_atomic, write_json
from sammi_jax.images import LONG_SIDE, SHORT_SIDE
from sammi_jax.object_store import AnyPath
from sammi_jax.typing import NpArray

_COLUMNS = {
    "miou": "mIoU",
    "miou_union": "mIoU (union)",
    "seen_miou": "seen",
    "unseen_miou": "unseen",
    "harmonic_mean": "harmonic mean",
    "interest_miou": "CoI mIoU",
    "fwiou": "fwIoU",
    "macc": "mAcc",
    "pacc": "pAcc",
    "boundary_miou": "boundary IoU",
    "points_per_image": "points",
    "masks_per_image": "masks",
    "images_per_s": "images/s",
}
_PAPER_COLUMNS = ("A-847", "PC-459", "A-150", "PC-59", "PAS-20", "PAS-20b")


def result_record(
    dataset: Dataset,
    vocabulary: Vocabulary,
    counts: Counts,
    *,
    boundary: bool,
    has_masks: bool,
    timing: dict[str, Any],
) -> dict[str, Any]:
    """All numbers of one data set, as JSON's types; None where there is no number.

    Points and masks are means over the images, for models with masks. ``timing`` belongs to this
    run alone; everything else is the same to the bit in another run, or a resumed one.
    """
    confusion = np.asarray(counts.confusion)
    values = scores(confusion)
    per_class = {"iou": np.asarray(values.pop("iou"))}
    if dataset.unseen:
        seen, unseen = (subset_miou(confusion, part) for part in (dataset.seen, dataset.unseen))
        values |= {"seen_miou": seen, "unseen_miou": unseen}
        values["harmonic_mean"] = harmonic_mean(seen, unseen)
    interest = tuple(dataset.classes_of_interest)
    if dataset.domain or len(interest) in range(1, dataset.num_classes):
        values["interest_miou"] = subset_miou(confusion, interest, union=True)
    if boundary:
        per_class["boundary_iou"] = boundary_iou(np.asarray(counts.boundary))
        found = per_class["boundary_iou"][~np.isnan(per_class["boundary_iou"])]
        values["boundary_miou"] = float(found.mean()) if found.size else float("nan")
    images = int(counts.images)
    return {
        "dataset": dataset.name,
        "column": dataset.column,
        "domain": dataset.domain,
        "num_images": images,
        "num_classes": dataset.num_classes,
        **{name: _number(value) for name, value in values.items()},
        "points_per_image": int(counts.points) / images if has_masks else None,
        "masks_per_image": int(counts.masks) / images if has_masks else None,
        "classes": _classes(dataset, vocabulary, confusion, per_class),
        "vocabulary_sha256": vocabulary_hash(vocabulary.class_names, vocabulary.merge),
        "timing": timing,
    }


def _classes(
    dataset: Dataset, vocabulary: Vocabulary, confusion: NpArray, per_class: dict[str, NpArray]
) -> list[dict[str, Any]]:
    texts: list[list[str]] = [[] for _ in range(dataset.num_classes)]
    for name, index in zip(vocabulary.class_names, vocabulary.merge, strict=True):
        texts[index].append(name)
    label, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "name": " | ".join(names) or "background",  # where it has no text of its own
            "label_pixels": int(label[index]),
            "predicted_pixels": int(predicted[index]),
            **{name: _number(values[index]) for name, values in per_class.items()},
        }
        for index, names in enumerate(texts)
    ]


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)  # JSON has no NaN


def write_results(
    results: list[dict[str, Any]],
    model_folder: AnyPath,
    config: TrainConfig,
    model: SegmenterConfig,
    workdir: AnyPath,
) -> str:
    """Write ``results.json`` and ``results.md`` (in the first process of a job); the tables.

    Args:
        results: a record for each data set.
        model_folder: that was evaluated.
        config: of the experiment.
        model: configuration of the model, from its folder.
        workdir: for the files.
    """
    record = {
        "model": str(model_folder),
        "config_sha256": config_digest(config),
        "templates": list(model.templates),
        "resize": resize_rule(model),
        "eval": resolved(config)["eval"],
        "results": results,
    }
    table = markdown(results)
    summary = papers_table(results)
    parts = [f"# {model_folder}", *([summary] if summary else []), table]
    if jax.process_index() != 0:
        return "\n\n".join(parts[1:])
    write_json(workdir / "results.json", record)
    write_atomic(workdir / "results.md", "\n\n".join(parts) + "\n")
    return "\n\n".join(parts[1:])


def resize_rule(model: SegmenterConfig) -> str:
    """How images and scores are resized, in words."""
    if model.sliding is None:
        return "whole image as one view; scores bilinear to the label's size"
    return (
        f"short side {SHORT_SIDE}, long side at most {LONG_SIDE} (bilinear, antialiased); squashed "
        f"to a square of {model.sliding.output_size} (bilinear); windows of {model.crop_size} at "
        f"stride {model.sliding.stride} and a global view; scores bilinear to the label's size"
    )


def papers_table(results: list[dict[str, Any]]) -> str | None:
    """The mIoU in the papers' columns, and MESS by domain; None where no data set has a column."""
    values = {r["column"]: r["miou"] for r in results if r.get("column") in _PAPER_COLUMNS}
    domains: dict[str, list[float]] = {}
    for result in _joined_paxray(results):
        if result.get("domain") and result["miou_union"] is not None:
            domains.setdefault(result["domain"], []).append(result["miou_union"])
    tables = []
    if values:
        tables.append(_row_table(_PAPER_COLUMNS, [values.get(c) for c in _PAPER_COLUMNS]))
    if domains:
        every = [value for part in domains.values() for value in part]
        names = [*domains, f"MESS mean of {len(every)}"]
        means = [float(np.mean(part)) for part in [*domains.values(), every]]
        tables.append(_row_table(names, means))
    return "\n\n".join(tables) or None


def _joined_paxray(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PAXRay's four binary tasks count as one set in MESS's means."""
    tasks = [r for r in results if "paxray" in r["dataset"] and r["miou_union"] is not None]
    others = [r for r in results if r not in tasks]
    if not tasks:
        return others
    mean = float(np.mean([task["miou_union"] for task in tasks]))
    return [*others, {**tasks[0], "miou_union": mean}]


def _row_table(names: Iterable[str], values: Sequence[float | None]) -> str:
    cells = [_cell("miou", value) for value in values]
    return "\n".join(
        [f"| {' | '.join(names)} |", "|" + "---|" * len(cells), f"| {' | '.join(cells)} |"]
    )


def markdown(results: list[dict[str, Any]]) -> str:
    """A row for each data set: fractions in per cent, one decimal, "-" where there is no number."""
    rows = [result | result["timing"] for result in results]
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = [
        "| " + " | ".join(["data set", "images", *(_COLUMNS[key] for key in keys)]) + " |",
        "|" + "---|" * (len(keys) + 2),
    ]
    for row in rows:
        cells = [row["dataset"], str(row["num_images"])]
        cells += [_cell(key, row.get(key)) for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    is_fraction = key not in ("points_per_image", "masks_per_image", "images_per_s")
    return f"{100 * value:.1f}" if is_fraction else f"{value:.1f}"
