"""`make study`: what each part of SAM-MI is worth, on OpenShapes (docs/study.md).

Every number comes from a run that is logged under the work folder; what is done is not done again.
Settings were chosen on `val_*` scenes; the numbers are of `test_*` scenes. Hours on two cores.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages import Job, Stages, convert, evaluate, train
from study_report import FULL, write_report

DATASET = "os48/test_unseen"  # it holds classes of both kinds
SEEDS = (0, 1, 2)  # of the heads
# The parts of the injection that are on.
VARIANTS: dict[str, tuple[str, ...]] = {
    "low": ("low",),
    "high": ("high",),
    "both": ("low", "high"),
    "smoothing": ("smoothing",),
    "all": ("low", "high", "decoder", "smoothing"),
}
NOISELESS = "noiseless"  # the same, trained without mask noise
PARTS = ("low", "high", "decoder", "smoothing")

ABOUT = """Written by `make study`; no number is typed by hand. os48, the first {images} scenes of
`test_unseen` (masks of every kind: the first {mask_images}), on which nothing was chosen; per cent;
mean and range (smallest to largest) over the seeds {seeds} of the heads. Every row starts from the
seed's CAT-Seg and trains for as long as the control. This is a small procedural data set with small
models: it tells whether a mechanism works, not what it gives on photographs."""


@dataclass(frozen=True)
class Scale:
    """How much is done; the smoke test does little.

    Attributes:
        seeds: of the heads.
        scenes: evaluated, of `DATASET`.
        mask_scenes: of these, that masks of every kind are tried on.
        settings: of every training.
        longer: steps of the long comparison; None: left out.
        towers: whether other towers are trained: a CLIP and a SAM of another seed.
    """

    seeds: Sequence[int] = SEEDS
    scenes: int = 200
    mask_scenes: int = 100
    settings: tuple[str, ...] = ()
    longer: int | None = 300
    towers: bool = True


SMOKE = Scale(
    seeds=(0,),
    scenes=20,
    mask_scenes=20,
    settings=("steps=2", "optim.warmup_steps=1"),
    longer=None,
    towers=False,
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
    title = "Study: what each part of SAM-MI is worth, on OpenShapes"
    write_report(options.workdir.resolve(), options.report, title, ABOUT)


def study(work: Path, scale: Scale, at_once: int) -> None:
    """All runs."""
    stages = Stages(work / "logs", work / "compiled")
    queue = lambda jobs: stages.run_queue(jobs, at_once)  # noqa: E731
    first = Towers(str(work / "towers" / "clip"), str(work / "towers" / "sam"), work)
    queue([
        convert("convert clip", "clip", "openshapes_clip", Path(first.clip)),
        convert("convert sam", "sam", "openshapes_sam", Path(first.sam)),
    ])  # fmt: skip
    for seed in scale.seeds:
        queue([catseg_job(first, seed, scale)])
        names = ("control", *_variants(), NOISELESS)
        queue([head_job(first, name, seed, scale) for name in names])
        queue([
            masks_job(first, seed, scale),  # the longest one
            *(evaluation_job(first, name, seed, scale) for name in names),
            *(evaluation_job(first, FULL, seed, scale, masks) for masks in ("none", "true")),
        ])  # fmt: skip
    if scale.longer is not None:
        for seed in scale.seeds:
            names = ("control-longer", f"{FULL}-longer")
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
        queue([head_job(towers, name, 0, scale) for name in ("control", FULL)])
        queue([evaluation_job(towers, name, 0, scale) for name in ("control", FULL)])


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
        settings += ["task.model.masks=none", "task.mask_noise=none"]
    else:
        on, _, smagg = base.partition("+")
        settings += [f"task.sam={towers.sam}"]
        settings += [
            f"task.model.masks.dmi.{part}={str(part in VARIANTS.get(on, PARTS)).lower()}"
            for part in PARTS
        ]
        if not smagg and base != NOISELESS:
            settings.append("task.model.masks.smagg=none")
    if base == NOISELESS:
        settings.append("task.mask_noise=none")
    folder = run_folder(towers.work, name, seed)
    return train(f"{towers.work.name} {name} {seed}", "openshapes_sammi", folder, *settings)


def evaluation_job(towers: Towers, name: str, seed: int, scale: Scale, masks: str = "own") -> Job:
    """`sammi eval` of a run, with its own masks or others."""
    run = run_folder(towers.work, name, seed)
    return evaluate(
        f"evaluate {towers.work.name} {name} {seed} {masks}", run / "model",
        run / f"eval-{masks}", [DATASET], f"eval.num_examples={scale.scenes}",
        "eval.boundary=true", *([] if masks == "own" else [f"eval.masks={masks}"]),
    )  # fmt: skip


def masks_job(towers: Towers, seed: int, scale: Scale) -> Job:
    """`study_masks.py` on a seed's models."""
    folders = {
        option: run_folder(towers.work, name, seed) / "model"
        for option, name in (("--sammi", FULL), ("--noiseless", NOISELESS), ("--catseg", "control"))
    }
    made = run_folder(towers.work, FULL, seed) / "masks.json"
    command = ["examples/study_masks.py", "--sam", towers.sam, "--dataset", DATASET]
    command += [part for option, folder in folders.items() for part in (option, str(folder))]
    command += ["--count", str(scale.mask_scenes)]
    command += ["--batch-size", str(min(20, scale.mask_scenes))]
    return Job(f"masks {seed}", made, (*command, "--out", str(made)))


def run_folder(work: Path, name: str, seed: int) -> Path:
    """Of a run: ``WORK/NAME/SEED``."""
    return work / name / str(seed)


if __name__ == "__main__":
    main()
