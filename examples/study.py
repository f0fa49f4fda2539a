"""`make study`: what each part of SAM-MI is worth, on OpenShapes (docs/study.md).

Every number comes from a run that is logged under the work folder; what is done is not done again.
Settings were chosen on `val_*` scenes; the numbers are of `test_*` scenes. Hours on two cores.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import Job, Stages, convert, evaluate, train
from study_report import write_report

SPLIT = "test_unseen"  # it holds classes of both kinds
SEEDS = (0, 1, 2)  # of the heads
# The parts of the injection that are on.
VARIANTS: dict[str, tuple[str, ...]] = {
    "low": ("low",),
    "high": ("high",),
    "both": ("low", "high"),
    "decoder": ("low", "high", "decoder"),
    "smoothing": ("smoothing",),
    "all": ("low", "high", "decoder", "smoothing"),
}
PARTS = ("low", "high", "decoder", "smoothing")
NOISE = {"drop": 0.1, "dilate": 0.2, "erode": 0.2, "shift": 0.2}


@dataclass(frozen=True)
class Scale:
    """How much is done; the smoke test does little.

    Attributes:
        seeds: of the heads.
        scenes: evaluated, of `SPLIT`.
        settings: of every training.
        longer: steps of the long comparison; None: left out.
        towers: whether other towers are trained: a CLIP and a SAM of another seed.
    """

    seeds: Sequence[int] = SEEDS
    scenes: int = 200
    settings: tuple[str, ...] = ()
    longer: int | None = 300
    towers: bool = True


SMOKE = Scale(
    seeds=(0,), scenes=20, settings=("steps=2", "optim.warmup_steps=1"), longer=None, towers=False
)


@dataclass(frozen=True)
class Towers:
    """The CLIP and the SAM of a group of runs, and the folder for it."""

    clip: str
    sam: str
    work: Path


def main() -> None:
    """Run all that is missing, then write the report."""
    parser = argparse.ArgumentParser(description="Study SAM-MI's parts on OpenShapes.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/study"), help="for all runs")
    parser.add_argument("--report", type=Path, default=Path("docs/study.md"), help="to write")
    parser.add_argument("--at-once", type=int, default=2, help="jobs at the same time")
    parser.add_argument("--smoke", action="store_true", help="two steps of each: does it run?")
    options = parser.parse_args()
    scale = SMOKE if options.smoke else Scale()
    study(options.workdir.resolve(), scale, options.at_once)
    write_report(options.workdir.resolve(), options.report)


def study(work: Path, scale: Scale, at_once: int) -> None:
    """All runs."""
    stages = Stages(work / "logs")
    queue = lambda jobs: stages.run_queue(jobs, at_once)  # noqa: E731
    first = Towers(str(work / "towers" / "clip"), str(work / "towers" / "sam"), work)
    queue([
        convert("convert clip", "clip", "openshapes_clip", Path(first.clip)),
        convert("convert sam", "sam", "openshapes_sam", Path(first.sam)),
    ])  # fmt: skip
    for seed in scale.seeds:
        queue([catseg_job(first, seed, scale)])
        queue(
            [
                job
                for name in ("control", *_variants())
                for job in [head_job(first, name, seed, scale)]
            ]
        )
        queue([evaluation_job(first, name, seed, scale) for name in ("control", *_variants())])
        queue([head_job(first, "noisy", seed, scale)])
        queue([evaluation_job(first, "all", seed, scale, masks) for masks in ("none", "true")])
        queue([masks_job(first, seed, scale)])
    if scale.longer is not None:
        for seed in scale.seeds:
            names = ("control-longer", "all-longer")
            queue([head_job(first, name, seed, scale) for name in names])
            queue([evaluation_job(first, name, seed, scale) for name in names])
    if scale.towers:
        _other_towers(work, first, scale, queue)


def _variants() -> list[str]:
    return [name + suffix for name in VARIANTS for suffix in ("", "+smagg")]


def _other_towers(
    work: Path, first: Towers, scale: Scale, queue: Callable[[list[Job]], None]
) -> None:
    """The main comparison on another CLIP, and on another SAM."""
    clip = train("train clip 1", "openshapes_clip", work / "towers" / "clip1", "seed=1")
    sam = train("train sam 1", "openshapes_sam", work / "towers" / "sam1", "seed=1")
    queue([sam, clip])
    for towers in (
        Towers(str(clip.made), first.sam, work / "clip1"),
        Towers(first.clip, str(sam.made), work / "sam1"),
    ):
        queue([catseg_job(towers, 0, scale)])
        queue([head_job(towers, name, 0, scale) for name in ("control", "all")])
        queue([evaluation_job(towers, name, 0, scale) for name in ("control", "all")])


def catseg_job(towers: Towers, seed: int, scale: Scale) -> Job:
    """The CAT-Seg that all others of a seed start from."""
    folder = run_folder(towers.work, "catseg", seed)
    return train(f"{towers.work.name} catseg {seed}", "openshapes_catseg", folder,
                 f"seed={seed}", f"task.clip={towers.clip}", *scale.settings)  # fmt: skip


def head_job(towers: Towers, name: str, seed: int, scale: Scale) -> Job:
    """A run of SAM-MI's steps from that CAT-Seg: the control has no masks."""
    start = run_folder(towers.work, "catseg", seed) / "model"
    settings = [f"seed={seed}", f"task.segmenter={start}", *scale.settings]
    base, _, length = name.partition("-")
    if length:
        settings.append(f"steps={scale.longer}")
    if base == "control":
        settings.append("task.model.masks=none")
    else:
        on, _, smagg = base.partition("+")
        settings += [f"task.sam={towers.sam}"]
        settings += [
            f"task.model.masks.dmi.{part}={str(part in VARIANTS.get(on, PARTS)).lower()}"
            for part in PARTS
        ]
        if not smagg:
            settings.append("task.model.masks.smagg=none")
    if base == "noisy":
        rates = ", ".join(f"'{kind}': {rate}" for kind, rate in NOISE.items())
        settings.append(f"task.mask_noise={{{rates}}}")
    folder = run_folder(towers.work, name, seed)
    return train(f"{towers.work.name} {name} {seed}", "openshapes_sammi", folder, *settings)


def evaluation_job(towers: Towers, name: str, seed: int, scale: Scale, masks: str = "own") -> Job:
    """`sammi eval` of a run, with its own masks or others."""
    run = run_folder(towers.work, name, seed)
    return evaluate(
        f"evaluate {towers.work.name} {name} {seed} {masks}", run / "model",
        run / f"eval-{masks}", [f"os48/{SPLIT}"], f"eval.num_examples={scale.scenes}",
        "eval.boundary=true", *([] if masks == "own" else [f"eval.masks={masks}"]),
    )  # fmt: skip


def masks_job(towers: Towers, seed: int, scale: Scale) -> Job:
    """`study_masks.py` on a seed's models."""
    folders = {
        option: run_folder(towers.work, name, seed) / "model"
        for option, name in (("--sammi", "all"), ("--noisy", "noisy"), ("--catseg", "control"))
    }
    made = run_folder(towers.work, "all", seed) / "masks.json"
    command = ["examples/study_masks.py", "--sam", towers.sam, "--split", SPLIT]
    command += [part for option, folder in folders.items() for part in (option, str(folder))]
    return Job(f"masks {seed}", made, (*command, "--count", str(scale.scenes), "--out", str(made)))


def run_folder(work: Path, name: str, seed: int) -> Path:
    """Of a run: ``WORK/NAME/SEED``."""
    return work / name / str(seed)


if __name__ == "__main__":
    main()
