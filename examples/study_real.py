"""`make study-real`: the study's tables on ADE20K-150 and PC-59, for whoever has the weights.

    make study-real ARGS="--data-dir DIR --sam DIR --model control=DIR --model all+smagg=DIR"

A model is named as in `study.py`: ``control`` (CAT-Seg, trained for as long) and ``all+smagg`` (the
full SAM-MI) are needed; ``low``, ``high+smagg``, ``noiseless`` and the others are added where they
are given. ``NAME/SEED=DIR`` gives a seed. ``--sam`` is the model folder of the SAM.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stages import Job, Stages, evaluate
from study import VARIANTS, run_folder
from study_report import FULL, write_report

DATASETS = ("ade20k_150", "pascal_context_59")
NAMES = ("control", "noiseless", *(name + suffix for name in VARIANTS for suffix in ("", "+smagg")))
ABOUT = """Written by `make study-real`; no number is typed by hand. {images} images (masks of every
kind: the first {mask_images}); per cent; seeds {seeds}. True regions are the connected areas of one
class, for the labels know no instances."""

Models = dict[tuple[str, int], Path]  # model folders by name and seed


def main() -> None:
    """Run all that is missing, then write one report for each data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", default=[], metavar="NAME[/SEED]=DIR")
    parser.add_argument("--sam", type=Path, required=True, help="model folder of the SAM")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of prepared sets")
    parser.add_argument(
        "--datasets", default=",".join(DATASETS), help="prepared sets, or folder:PATH"
    )
    parser.add_argument("--config", default="sammi_vitb16", help="of the evaluation")
    parser.add_argument("--images", type=int, help="evaluated, from the first one; default: all")
    parser.add_argument("--mask-images", type=int, default=100, help="for masks of every kind")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/study_real"), help="for all runs"
    )
    options = parser.parse_args()
    work, models = options.workdir.resolve(), read_models(parser, options.model)
    stages = Stages(work / "logs")
    for dataset in options.datasets.split(","):
        label = dataset.replace("/", "_").replace(":", "_")
        stages.run_queue(jobs(dataset, models, work / label, options), at_once=1)
        write_report(work / label, work / f"{label}.md", f"Study on {dataset}", ABOUT)


def read_models(parser: argparse.ArgumentParser, given: Sequence[str]) -> Models:
    """``NAME[/SEED]=DIR``; ends with an error that names what is wrong or missing."""
    models: Models = {}
    for text in given:
        key, _, folder = text.partition("=")
        name, _, seed = key.partition("/")
        if name not in NAMES or not (seed or "0").isdigit():
            parser.error(f"--model {text}: give NAME[/SEED]=DIR, NAME one of {', '.join(NAMES)}")
        if not (Path(folder) / "config.json").is_file():
            parser.error(f"--model {text}: {folder or 'nothing'} is no model folder")
        models[name, int(seed or 0)] = Path(folder).resolve()
    seeds = {seed for _, seed in models} or {0}
    missing = [f"{name}/{seed}" for seed in sorted(seeds) for name in ("control", FULL)
               if (name, seed) not in models]  # fmt: skip
    if missing:
        parser.error(f"--model is missing for {', '.join(missing)}")
    return models


def jobs(dataset: str, models: Models, work: Path, options: argparse.Namespace) -> list[Job]:
    """Evaluations of every model, and masks of every kind for the full one."""
    data_dir = options.data_dir.resolve()

    def evaluation(name: str, seed: int, masks: str) -> Job:
        settings = ["eval.boundary=true"]
        if options.images:
            settings.append(f"eval.num_examples={options.images}")
        if masks != "own":
            settings.append(f"eval.masks={masks}")
        return evaluate(
            f"evaluate {work.name} {name} {seed} {masks}", models[name, seed],
            run_folder(work, name, seed) / f"eval-{masks}", [dataset], *settings,
            config=options.config, data_dir=data_dir,
        )  # fmt: skip

    def masks_job(seed: int) -> Job:
        out = run_folder(work, FULL, seed) / "masks.json"
        command = ["examples/study_masks.py", "--dataset", dataset, "--data-dir", str(data_dir)]
        command += ["--count", str(options.mask_images), "--sam", str(options.sam.resolve())]
        command += ["--sammi", str(models[FULL, seed]), "--catseg", str(models["control", seed])]
        if ("noiseless", seed) in models:
            command += ["--noiseless", str(models["noiseless", seed])]
        return Job(f"masks {work.name} {seed}", out, (*command, "--out", str(out)))

    own = [evaluation(name, seed, "own") for name, seed in models]
    seeds = sorted({seed for _, seed in models})
    shut = [evaluation(FULL, seed, "none") for seed in seeds]
    return own + shut + [masks_job(seed) for seed in seeds]


if __name__ == "__main__":
    main()
