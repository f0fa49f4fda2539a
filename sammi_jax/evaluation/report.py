"""Results on disk: ``results.json`` with every number, ``results.md`` for people."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sammi_jax.experiment import TrainConfig, resolved

_COLUMNS = {
    "miou": "mIoU",
    "miou_union": "mIoU (union)",
    "seen_miou": "seen",
    "unseen_miou": "unseen",
    "harmonic_mean": "harmonic mean",
    "fwiou": "fwIoU",
    "macc": "mAcc",
    "pacc": "pAcc",
    "points_per_image": "points",
    "masks_per_image": "masks",
    "images_per_s": "images/s",
}


def write_results(
    results: list[dict[str, Any]], checkpoint: Path, config: TrainConfig, workdir: Path
) -> str:
    """Write both files and return the table that people read."""
    values = resolved(config)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    record = {
        "checkpoint": str(checkpoint),
        "config_sha256": digest,
        "template": values["task"]["model"]["template"],
        "results": results,
    }
    table = markdown(results)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (workdir / "results.md").write_text(f"# {checkpoint}\n\n{table}\n")
    return table


def markdown(results: list[dict[str, Any]]) -> str:
    """One row a data set; fractions in per cent with one decimal, "-" where there is no number."""
    keys = [key for key in _COLUMNS if any(result.get(key) is not None for result in results)]
    lines = [
        "| " + " | ".join(["data set", "images", *(_COLUMNS[key] for key in keys)]) + " |",
        "|" + "---|" * (len(keys) + 2),
    ]
    for result in results:
        cells = [result["dataset"], str(result["num_images"])]
        cells += [_cell(key, result.get(key)) for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    is_fraction = key not in ("points_per_image", "masks_per_image", "images_per_s")
    return f"{100 * value:.1f}" if is_fraction else f"{value:.1f}"
