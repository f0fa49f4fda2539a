"""`docs/study.md` from the results of `make study`: tables, plots, verdicts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from sammi_jax.files import read_json, write_atomic

mpl.use("agg")
import matplotlib.pyplot as plt

_ORDER = ("low", "high", "both", "decoder", "smoothing", "all")
_MEANING = {
    "control": "CAT-Seg, trained on for as long",
    "low": "low frequency: mask context into F_l and the cost map's embedding",
    "high": "high frequency: into F_h1 and F_h2",
    "both": "low and high: the paper's two paths",
    "decoder": "low, high, evidence in the decoder [ours]",
    "smoothing": "smoothing alone [ours]",
    "all": "all four",
}


def write_report(work: Path, report: Path) -> None:
    """Write the page, and its plots into ``REPORT's folder/study/``.

    Args:
        work: of the study.
        report: the Markdown file.
    """
    results = Results(work)
    plots = report.with_name("study")
    plots.mkdir(parents=True, exist_ok=True)
    sections = [
        _HEAD.format(scenes=results.scenes, seeds=", ".join(map(str, results.seeds))),
        "## Verdicts\n\n" + verdicts(results),
        "## The parts of the injection\n\n" + variants_table(results),
        f"![gain of each part]({plots.name}/variants.png)",
        "## Masks, and what they are worth\n\n" + masks_table(results),
        "## Points\n\n" + rows_table(results, "points", _POINT_COLUMNS),
        f"![points]({plots.name}/points.png)",
        "## SMAgg\n\n" + rows_table(results, "smagg", _SMAGG_COLUMNS),
        "## Damaged masks\n\n" + robustness_table(results),
        f"![damaged masks]({plots.name}/robustness.png)",
        "## In the manner of Grounded-SAM\n\n" + grounded_table(results),
        "## Longer, and on other towers\n\n" + others_table(results),
    ]
    plot_variants(results, plots / "variants.png")
    plot_points(results, plots / "points.png")
    plot_robustness(results, plots / "robustness.png")
    write_atomic(report, "\n\n".join(sections) + "\n")


_HEAD = """# Study: what each part of SAM-MI is worth, on OpenShapes

Written by `make study`; no number is typed by hand. os48, the first {scenes} scenes of
`test_unseen`, on which nothing was chosen; per cent; mean and range (smallest to largest) over the
seeds {seeds} of the heads. Every row starts from the seed's CAT-Seg and trains for as long as the
control. This is a small procedural data set with small models: it tells whether a mechanism works,
not what it gives on photographs."""

_POINT_COLUMNS = {
    "points": "points", "masks": "masks", "regions_hit": "regions hit",
    "recall_0.5": "recall at IoU .5", "recall_0.7": "at .7", "harmonic_mean": "harmonic mean",
    "seconds": "ms a scene",
}  # fmt: skip
_SMAGG_COLUMNS = {
    "masks": "masks", "masks_per_region": "masks a region", "purity": "purity",
    "recall_0.5": "recall at IoU .5", "harmonic_mean": "harmonic mean",
}  # fmt: skip


class Results:
    """What the study's runs have written.

    Attributes:
        seeds: for which there is a control.
        scenes: evaluated.
    """

    def __init__(self, work: Path):
        self._work = work
        self.seeds = sorted(int(p.parent.parent.name) for p in
                            (work / "control").glob("*/eval-own/results.json"))  # fmt: skip
        self.scenes = self.evaluation("control", self.seeds[0])["num_images"]
        self.masks = [
            json.loads((work / "all" / str(seed) / "masks.json").read_text()) for seed in self.seeds
        ]

    def evaluation(
        self, name: str, seed: int, masks: str = "own", group: str = ""
    ) -> dict[str, Any]:
        """The record of one evaluation."""
        file = self._work / group / name / str(seed) / f"eval-{masks}" / "results.json"
        return read_json(file)["results"][0]

    def has(self, name: str, seed: int, group: str = "") -> bool:
        """Whether an evaluation was made."""
        return (self._work / group / name / str(seed) / "eval-own" / "results.json").is_file()

    def values(self, name: str, key: str = "harmonic_mean", masks: str = "own") -> list[float]:
        """A number of every seed, in per cent."""
        return [100 * self.evaluation(name, seed, masks)[key] for seed in self.seeds]

    def gains(self, name: str, masks: str = "own") -> list[float]:
        """Harmonic mean above the seed's control."""
        own, control = self.values(name, masks=masks), self.values("control")
        return [a - b for a, b in zip(own, control, strict=True)]


def spread(values: Sequence[float], digits: int = 1, sign: bool = False) -> str:
    """``mean (smallest to largest)``."""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    mean, low, high = (form.format(x) for x in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def variants_table(results: Results) -> str:
    """Each part, without and with SMAgg."""
    rows = []
    for name in ("control", *(v + s for v in _ORDER for s in ("", "+smagg"))):
        base, _, smagg = name.partition("+")
        rows.append([
            _MEANING[base] + (", SMAgg" if smagg else ""),
            *(spread(results.values(name, key)) for key in
              ("seen_miou", "unseen_miou", "harmonic_mean")),
            "" if name == "control" else spread(results.gains(name), sign=True),
            spread(results.values(name, "boundary_miou")),
        ])  # fmt: skip
    head = ["", "seen", "unseen", "harmonic mean", "above the control", "boundary IoU"]
    return _table(head, rows)


def masks_table(results: Results) -> str:
    """The full model with its own masks, none, and the true instances."""
    titles = {"own": "its own masks", "none": "all masks shut", "true": "true instances"}
    rows = [
        [title, spread(results.values("all", masks=masks)),
         spread(results.gains("all", masks), sign=True),
         spread(results.values("all", "boundary_miou", masks))]
        for masks, title in titles.items()
    ]  # fmt: skip
    return _table(["the model with", "harmonic mean", "above the control", "boundary IoU"], rows)


def rows_table(results: Results, part: str, columns: dict[str, str]) -> str:
    """A table of `study_masks.py`, mean over the seeds."""
    rows = []
    for number, name in enumerate(results.masks[0][part]):
        # Names hold the number of points, which differs a little between seeds.
        records = [list(seed[part].values())[number] for seed in results.masks]
        values = {key: [record[key] for record in records] for key in columns}
        rows.append([name, *(_shown(key, values[key]) for key in columns)])
    return _table(["", *columns.values()], rows)


def _shown(key: str, values: Sequence[float]) -> str:
    if key == "seconds":
        return f"{1000 * float(np.mean(values)):.0f}"
    digits = 1 if key in ("points", "masks", "harmonic_mean") else 2
    return spread(values, digits) if key == "harmonic_mean" else f"{np.mean(values):.{digits}f}"


def _robust(results: Results, name: str, how: str, noisy: bool) -> list[float]:
    part = "robustness_noisy" if noisy else "robustness"
    control = results.values("control")
    return [s[part][name][how] - c for s, c in zip(results.masks, control, strict=True)]


def robustness_table(results: Results) -> str:
    """Harmonic mean above the control, by damage."""
    rows = [
        [name,
         *(spread(_robust(results, name, how, noisy), sign=True)
           for noisy in (False, True) for how in ("soft", "soft, quality not told")),
         spread(_robust(results, name, "hard", False), sign=True)]
        for name in results.masks[0]["robustness"]
    ]  # fmt: skip
    head = ["true instances", "injected", "quality not told", "trained with mask noise",
            "the same, not told", "hard voting"]  # fmt: skip
    return _table(head, rows) + "\n\nHarmonic mean above CAT-Seg trained on for as long."


def grounded_table(results: Results) -> str:
    """Accuracy and time."""
    values = [seed["grounded"] for seed in results.masks]
    rows = [
        ["CAT-Seg's areas -> points -> SAM -> labels",
         spread([v["harmonic_mean"] for v in values]),
         f"{1000 * float(np.mean([v['seconds'] for v in values])):.0f}"],
        ["SAM-MI", spread(results.values("all")), "-"],
        ["CAT-Seg, trained on for as long", spread(results.values("control")), "-"],
    ]  # fmt: skip
    return _table(["", "harmonic mean", "ms a scene (labels, prompts, SAM)"], rows)


def others_table(results: Results) -> str:
    """300 steps; a CLIP and a SAM of another seed."""
    rows = []
    for title, group, control, full, seeds in (
        ("300 steps", "", "control-longer", "all-longer", results.seeds),
        ("CLIP of seed 1", "clip1", "control", "all", [0]),
        ("SAM of seed 1", "sam1", "control", "all", [0]),
    ):
        there = [seed for seed in seeds if results.has(full, seed, group)]
        if there:
            pairs = [
                tuple(
                    100 * results.evaluation(name, seed, group=group)["harmonic_mean"]
                    for name in (control, full)
                )
                for seed in there
            ]
            rows.append([
                title, spread([a for a, _ in pairs]), spread([b for _, b in pairs]),
                spread([b - a for a, b in pairs], sign=True),
            ])  # fmt: skip
    if not rows:
        return "Not run."
    return _table(["", "CAT-Seg for as long", "SAM-MI", "difference"], rows)


def verdicts(results: Results) -> str:
    """The claims of the abstract, one by one."""
    tspp = [seed["points"]["TSPP"] for seed in results.masks]
    grid = [seed["points"]["grid 16 x 16"] for seed in results.masks]
    saved = 100 * (1 - np.mean([t["points"] for t in tspp]) / np.mean([g["points"] for g in grid]))
    recall = [t["recall_0.5"] - g["recall_0.5"] for t, g in zip(tspp, grid, strict=True)]
    answer = [t["harmonic_mean"] - g["harmonic_mean"] for t, g in zip(tspp, grid, strict=True)]
    own = results.gains("all")
    smagg = [a - b for a, b in zip(results.gains("all+smagg"), own, strict=True)]
    poor = _robust(results, "IoU 0.6", "soft", False)
    hard = _robust(results, "IoU 0.6", "hard", False)
    grounded = [s["grounded"]["harmonic_mean"] for s in results.masks]
    against = [a - b for a, b in zip(results.values("all"), grounded, strict=True)]
    rows = [
        ("Masks of a frozen SAM improve the answer", own, _above(own, 0.5)),
        ("Low-frequency context helps by itself", results.gains("low"),
         _above(results.gains("low"), 0.3)),
        ("High-frequency context helps by itself", results.gains("high"),
         _above(results.gains("high"), 0.3)),
        ("Sparse points lose nothing in the answer (against a 16 x 16 grid)", answer,
         _above(answer, -0.3)),
        ("Sparse points give comparable masks (recall at IoU .5, in points of 100)",
         [100 * r for r in recall], _above([100 * r for r in recall], -3.0)),
        ("SMAgg improves the answer", smagg, _above(smagg, 0.3)),
        ("Soft injection bears masks of IoU .6", poor, _above(poor, -0.2)),
        ("... where hard voting does not", hard, _above([-h for h in hard], 0.2)),
        ("Better than labels for SAM's masks (in the manner of Grounded-SAM)", against,
         _above(against, 0.5)),
    ]  # fmt: skip
    table = _table(
        ["claim", "effect", "verdict"],
        [[claim, spread(effect, sign=True), verdict] for claim, effect, verdict in rows],
    )
    return (
        f"{table}\n\nEffects are differences of the harmonic mean, unless said. *Holds* and *does "
        f"not*: in every seed. TSPP asks {saved:.0f}% fewer points than the 16 x 16 grid."
    )


def _above(values: Sequence[float], threshold: float) -> str:
    above = [value > threshold for value in values]
    if len(values) < 3:
        return "can't be told (fewer than three seeds)"
    return "holds" if all(above) else "can't be told" if any(above) else "does not hold"


def _figure(draw: Callable[[Any], None], file: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4), dpi=100)
    draw(axes)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def _errors(values: Sequence[float]) -> list[list[float]]:
    mean = float(np.mean(values))
    return [[mean - min(values)], [max(values) - mean]]


def plot_variants(results: Results, file: Path) -> None:
    """Bars: gain of every variant, with the range over the seeds."""

    def draw(axes: Any) -> None:
        for offset, suffix, label in ((-0.2, "", "no SMAgg"), (0.2, "+smagg", "SMAgg")):
            for place, name in enumerate(_ORDER):
                gains = results.gains(name + suffix)
                axes.bar(place + offset, np.mean(gains), 0.4, yerr=_errors(gains), capsize=3,
                         color="C0" if not suffix else "C1",
                         label=label if place == 0 else None)  # fmt: skip
        axes.set_xticks(range(len(_ORDER)), _ORDER)
        axes.set_ylabel("harmonic mean above the control")
        axes.legend()

    _figure(draw, file)


def plot_points(results: Results, file: Path) -> None:
    """Recall of the regions against the number of points."""

    def draw(axes: Any) -> None:
        for number, name in enumerate(results.masks[0]["points"]):
            records = [list(seed["points"].values())[number] for seed in results.masks]
            if records[0]["points"]:
                recall = [record["recall_0.5"] for record in records]
                axes.errorbar(np.mean([r["points"] for r in records]), np.mean(recall),
                              yerr=_errors(recall), fmt="o", capsize=3, label=name)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("points a scene")
        axes.set_ylabel("regions with a mask of IoU > .5")
        axes.legend(fontsize=8)

    _figure(draw, file)


def plot_robustness(results: Results, file: Path) -> None:
    """Gain against the IoU of the masks: injected and hard."""
    names = {"exact": 1.0, "IoU 0.9": 0.9, "IoU 0.8": 0.8, "IoU 0.6": 0.6, "IoU 0.5": 0.5}

    def draw(axes: Any) -> None:
        for label, how, noisy in (
            ("injected", "soft", False),
            ("injected, quality not told", "soft, quality not told", False),
            ("injected, trained with noise", "soft", True),
            ("hard voting", "hard", False),
        ):
            values = [_robust(results, name, how, noisy) for name in names]
            errors = np.array([_errors(v) for v in values])[..., 0].T
            axes.errorbar(list(names.values()), [np.mean(v) for v in values], yerr=errors,
                          capsize=3, label=label)  # fmt: skip
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_xlabel("IoU of the masks")
        axes.set_ylabel("harmonic mean above the control")
        axes.legend()

    _figure(draw, file)
