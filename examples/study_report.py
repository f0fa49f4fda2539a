"""`docs/study.md` from the results of `make study`: tables, plots, verdicts."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from sammi_jax.files import read_json, write_atomic

mpl.use("agg")
import matplotlib.pyplot as plt

FULL = "all+smagg"  # as users have it
_ORDER = ("low", "high", "both", "smoothing", "all")
_WIDTH = 120  # of the lines of prose
_MEANING = {
    "control": "CAT-Seg, trained on for as long",
    "low": "low frequency: mask context into F_l and the cost map's embedding",
    "high": "high frequency: into F_h1 and F_h2",
    "both": "low and high: the paper's two paths",
    "smoothing": "smoothing alone [ours]",
    "noiseless": "all of it, trained without mask noise",
    "all": "low, high, evidence in the decoder [ours], smoothing",
}


def write_report(work: Path, report: Path, title: str, about: str) -> None:
    """Write the page, and its plots into a folder beside it that has its name.

    Args:
        work: of the study; what it does not hold is left out.
        report: the Markdown file.
        title: of the page.
        about: what was measured, on what; ``{images}``, ``{seeds}`` and ``{mask_images}`` are
            filled in.
    """
    results = Results(work)
    plots = report.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    seeds = ", ".join(map(str, results.seeds))
    sections = [
        f"# {title}",
        textwrap.fill(
            about.format(images=results.images, seeds=seeds, mask_images=results.mask_images),
            _WIDTH,
        ),
        "## Verdicts\n\n" + verdicts(results),
        "## The parts of the injection\n\n" + variants_table(results),
        f"![gain of each part]({plots.name}/variants.png)",
        "## Masks, and what they are worth\n\n" + masks_table(results),
        "## Points\n\n" + rows_table(results, "points", _POINT_COLUMNS),
        f"![points]({plots.name}/points.png)",
        "## SMAgg\n\nThresholds: cosine of mean features, and of mean class distributions.\n\n"
        + rows_table(results, "smagg", _SMAGG_COLUMNS),
        "## Damaged masks\n\n" + robustness_table(results),
        f"![damaged masks]({plots.name}/robustness.png)",
        "## In the manner of Grounded-SAM\n\n" + grounded_table(results),
        "## Longer, and on other towers\n\n" + others_table(results),
    ]
    plot_variants(results, plots / "variants.png")
    plot_points(results, plots / "points.png")
    plot_robustness(results, plots / "robustness.png")
    write_atomic(report, "\n\n".join(sections) + "\n")


_POINT_COLUMNS = {
    "points": "points", "masks": "masks", "regions_hit": "regions hit",
    "recall_0.5": "recall at IoU .5", "recall_0.7": "at .7", "score": "{score}",
    "seconds": "ms an image",
}  # fmt: skip
_SMAGG_COLUMNS = {
    "masks": "masks", "masks_per_region": "masks a region", "purity": "purity",
    "recall_0.5": "recall at IoU .5", "score": "{score}",
}  # fmt: skip
_SCORES = {"harmonic_mean": "harmonic mean", "miou": "mIoU"}


class Results:
    """What the study's runs have written.

    Attributes:
        seeds: whose masks were measured, which is done last.
        images: evaluated.
        mask_images: of these, that masks of every kind were tried on.
        metric: the one that is compared: the harmonic mean of seen and unseen classes, or mIoU
            where these are not told apart.
        masks: the record of `study_masks.py` of every seed.
    """

    def __init__(self, work: Path):
        self._work = work
        self.seeds = sorted(int(p.parent.name) for p in (work / FULL).glob("*/masks.json"))
        first = self.evaluation("control", self.seeds[0])
        self.images = first["num_images"]
        self.metric = "miou" if first.get("harmonic_mean") is None else "harmonic_mean"
        self.masks = [read_json(work / FULL / str(seed) / "masks.json") for seed in self.seeds]
        self.mask_images = self.masks[0]["images"]

    @property
    def score(self) -> str:
        """The metric in words."""
        return _SCORES[self.metric]

    def evaluation(
        self, name: str, seed: int, masks: str = "own", group: str = ""
    ) -> dict[str, Any]:
        """The record of one evaluation."""
        return read_json(self._file(name, seed, masks, group))["results"][0]

    def has(self, name: str, seed: int, masks: str = "own", group: str = "") -> bool:
        """Whether an evaluation was made."""
        return self._file(name, seed, masks, group).is_file()

    def has_all(self, name: str, masks: str = "own") -> bool:
        """Whether it was made for every seed."""
        return all(self.has(name, seed, masks) for seed in self.seeds)

    def _file(self, name: str, seed: int, masks: str, group: str) -> Path:
        return self._work / group / name / str(seed) / f"eval-{masks}" / "results.json"

    def values(self, name: str, masks: str = "own", key: str | None = None) -> list[float]:
        """A number of every seed, in per cent; by default the metric."""
        key = key or self.metric
        return [100 * self.evaluation(name, seed, masks)[key] for seed in self.seeds]

    def gains(self, name: str, masks: str = "own") -> list[float]:
        """The metric above the seed's control."""
        own, control = self.values(name, masks), self.values("control")
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
    keys = ["seen_miou", "unseen_miou"] if results.metric == "harmonic_mean" else []
    keys.append(results.metric)
    rows = []
    for name in ("control", *(v + s for v in _ORDER for s in ("", "+smagg")), "noiseless"):
        if not results.has_all(name):
            continue
        base, _, smagg = name.partition("+")
        rows.append([
            _MEANING[base] + (", SMAgg" if smagg else ""),
            *(spread(results.values(name, key=key)) for key in keys),
            "" if name == "control" else spread(results.gains(name), sign=True),
            spread(results.values(name, key="boundary_miou")),
        ])  # fmt: skip
    head = ["", *(key.removesuffix("_miou") for key in keys[:-1]), results.score]
    return _table([*head, "above the control", "boundary IoU"], rows)


def masks_table(results: Results) -> str:
    """The full model with its own masks, none, and the true instances."""
    titles = {"own": "its own masks", "none": "all masks disabled", "true": "true instances"}
    rows = [
        [title, spread(results.values(FULL, masks)),
         spread(results.gains(FULL, masks), sign=True),
         spread(results.values(FULL, masks, "boundary_miou"))]
        for masks, title in titles.items() if results.has_all(FULL, masks)
    ]  # fmt: skip
    return _table(["the model with", results.score, "above the control", "boundary IoU"], rows)


def rows_table(results: Results, part: str, columns: dict[str, str]) -> str:
    """A table of `study_masks.py`, mean over the seeds."""
    rows = []
    for number, name in enumerate(results.masks[0][part]):
        # Names hold the number of points, which differs a little between seeds.
        records = [list(seed[part].values())[number] for seed in results.masks]
        values = {
            key: [record[results.metric if key == "score" else key] for record in records]
            for key in columns
        }
        rows.append([name, *(_shown(key, values[key]) for key in columns)])
    return _table(["", *(column.format(score=results.score) for column in columns.values())], rows)


def _shown(key: str, values: Sequence[float]) -> str:
    if key == "seconds":
        return f"{1000 * float(np.mean(values)):.0f}"
    if key == "score":
        return spread(values)
    return f"{np.mean(values):.{1 if key in ('points', 'masks') else 2}f}"


def _robust(results: Results, name: str, how: str, part: str = "robustness") -> list[float]:
    """Above the control on the same images."""
    return [s[part][name][how] - s["control"][results.metric] for s in results.masks]


def robustness_table(results: Results) -> str:
    """The metric above the control, by damage."""
    columns = {
        "injected": ("soft", "robustness"),
        "quality not told": ("soft, quality not told", "robustness"),
        "trained without mask noise": ("soft", "robustness_noiseless"),
        "the same, not told": ("soft, quality not told", "robustness_noiseless"),
        "hard voting": ("hard", "robustness"),
    }
    columns = {title: at for title, at in columns.items() if at[1] in results.masks[0]}
    rows = [
        [name, *(spread(_robust(results, name, how, part), sign=True) if how in kinds else ""
                 for how, part in columns.values())]
        for name, kinds in results.masks[0]["robustness"].items()
    ]  # fmt: skip
    table = _table(["masks", *columns], rows)
    return f"{table}\n\nThe {results.score} above CAT-Seg, trained on for as long."


def grounded_table(results: Results) -> str:
    """Accuracy and time."""
    titles = {
        "grounded": "CAT-Seg's areas -> points -> SAM -> labels",
        "control": "CAT-Seg, trained on for as long",
        "sammi": "SAM-MI",
    }
    rows = [
        [title, spread([seed[name][results.metric] for seed in results.masks]),
         f"{1000 * float(np.mean([seed[name]['seconds'] for seed in results.masks])):.0f}"]
        for name, title in titles.items()
    ]  # fmt: skip
    return _table(["", results.score, "ms an image"], rows)


def others_table(results: Results) -> str:
    """300 steps; a CLIP and a SAM of another seed."""
    rows = []
    for title, group, control, full, seeds in (
        ("300 steps", "", "control-longer", f"{FULL}-longer", results.seeds),
        ("CLIP of seed 1", "clip1", "control", FULL, [0]),
        ("SAM of seed 1", "sam1", "control", FULL, [0]),
    ):
        there = [seed for seed in seeds if results.has(full, seed, group=group)]
        if there:
            pairs = [
                tuple(
                    100 * results.evaluation(name, seed, group=group)[results.metric]
                    for name in (control, full)
                )
                for seed in there
            ]
            rows.append([
                title, ", ".join(map(str, there)),
                spread([a for a, _ in pairs]), spread([b for _, b in pairs]),
                spread([b - a for a, b in pairs], sign=True),
            ])  # fmt: skip
    if not rows:
        return "Not run."
    return _table(["", "seeds", "CAT-Seg for as long", "SAM-MI", "difference"], rows)


def verdicts(results: Results) -> str:
    """The claims of the abstract, one by one."""
    metric = results.metric
    part = lambda name, row, key: [seed[name][row][key] for seed in results.masks]  # noqa: E731
    minus = lambda a, b: [x - y for x, y in zip(a, b, strict=True)]  # noqa: E731
    tspp, grid = (
        {key: part("points", row, key) for key in ("points", "recall_0.5", metric)}
        for row in ("TSPP", "grid 16 x 16")
    )
    saved = 100 * (1 - np.mean(tspp["points"]) / np.mean(grid["points"]))
    rows = [("Masks of a frozen SAM improve the answer", results.gains(FULL), 0.5)]
    for name, claim in (
        ("low", "Low-frequency context helps by itself"),
        ("high", "High-frequency context helps by itself"),
    ):
        if results.has_all(name):
            rows.append((claim, results.gains(name), 0.3))
    rows += [
        ("Sparse points lose nothing in the answer (against a 16 x 16 grid)",
         minus(tspp[metric], grid[metric]), -0.3),
        ("Sparse points give comparable masks (recall at IoU .5, in points of 100)",
         [100 * x for x in minus(tspp["recall_0.5"], grid["recall_0.5"])], -3.0),
    ]  # fmt: skip
    if results.has_all("all"):
        smagg = minus(results.gains(FULL), results.gains("all"))
        rows.append(("SMAgg improves the answer", smagg, 0.3))
    parts = [name for name in results.masks[0]["smagg"] if name.startswith("true parts")]
    if parts:
        off, on = (
            part("smagg", f"true parts, SMAgg {name}", metric) for name in ("off", "0.5, 0.9")
        )
        rows.append(("... where SAM over-segments (parts; thresholds .5, .9)", minus(on, off), 0.3))
    poor, hard = (_robust(results, "IoU 0.6", how) for how in ("soft", "hard"))
    own, voted = (_robust(results, "its own masks", how) for how in ("soft", "hard"))
    grounded = [seed["sammi"][metric] - seed["grounded"][metric] for seed in results.masks]
    rows += [
        ("Soft injection tolerates masks of IoU .6", poor, -0.2),
        ("... and loses less by them than hard voting", minus(poor, hard), 0.3),
        ("Soft injection is better than hard voting with the model's own masks",
         minus(own, voted), 0.3),
        ("Better than labels for SAM's masks (in the manner of Grounded-SAM)", grounded, 0.5),
    ]  # fmt: skip
    table = _table(
        ["claim", "effect", "needed", "verdict"],
        [
            [claim, spread(effect, sign=True), f"> {needed:+.1f}", _verdict(effect, needed)]
            for claim, effect, needed in rows
        ],
    )
    notes = (
        f"Effects are differences of the {results.score}, unless said. *Holds* and *does not "
        f"hold*: in every seed. TSPP asks {saved:.0f}% fewer points than the grid."
    )
    return f"{table}\n\n{textwrap.fill(notes, _WIDTH)}"


def _verdict(values: Sequence[float], threshold: float) -> str:
    above = [value > threshold for value in values]
    if len(values) < 3:
        return "inconclusive (fewer than three seeds)"
    return "holds" if all(above) else "inconclusive" if any(above) else "does not hold"


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
                if not results.has_all(name + suffix):
                    continue
                gains = results.gains(name + suffix)
                axes.bar(place + offset, np.mean(gains), 0.4, yerr=_errors(gains), capsize=3,
                         color="C0" if not suffix else "C1",
                         label=label if name == "all" else None)  # fmt: skip
        axes.set_xticks(range(len(_ORDER)), _ORDER)
        axes.set_ylabel(f"{results.score} above the control")
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
        for label, how, part in (
            ("injected", "soft", "robustness"),
            ("injected, quality not told", "soft, quality not told", "robustness"),
            ("injected, trained without mask noise", "soft", "robustness_noiseless"),
            ("hard voting", "hard", "robustness"),
        ):
            if part not in results.masks[0]:
                continue
            values = [_robust(results, name, how, part) for name in names]
            errors = np.array([_errors(v) for v in values])[..., 0].T
            axes.errorbar(list(names.values()), [np.mean(v) for v in values], yerr=errors,
                          capsize=3, label=label)  # fmt: skip
        axes.axhline(0, color="gray", linewidth=1)
        axes.set_xlabel("IoU of the masks")
        axes.set_ylabel(f"{results.score} above the control")
        axes.legend()

    _figure(draw, file)
