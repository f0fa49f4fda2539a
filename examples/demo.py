"""`make demo`: training, evaluation and pictures on generated data, with the `sammi` commands.

It starts as a user does, from a CLIP and a SAM that are given (the two small ones that come with
the package): converts both, trains CAT-Seg on the CLIP and SAM-MI on both, and evaluates them on
classes that training saw and did not see. Each stage is one command, which is printed before it
runs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from stages import Job, Stages, convert, evaluate, train

from sammi_jax.errors import SammiError
from sammi_jax.evaluation.report import markdown
from sammi_jax.files import write_atomic

_DATASET, _IMAGES = "os48/val_unseen", 120  # it holds classes of both kinds
_SCENES = (1, 2, 5, 8)  # of that data set: pictures
# A line of the table: the model, its folder, and settings of the evaluation.
_ROWS = {
    "CLIP, zero-shot": ("clip", ()),
    "CAT-Seg": ("catseg", ()),
    "CAT-Seg, trained on for as long": ("longer", ()),
    "SAM-MI": ("sammi", ()),
    "SAM-MI, masks disabled": ("sammi", ("eval.masks=none",)),
    "SAM-MI, true masks": ("sammi", ("eval.masks=true",)),
}


def main(arguments: list[str] | None = None) -> int:
    """Run every stage; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description="Train and evaluate the tiny models.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="for all output")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and sampling")
    options = parser.parse_args(arguments)
    try:
        return run(options.workdir.resolve(), options.seed)
    except subprocess.CalledProcessError as error:
        print(f"demo: this command failed: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    except SammiError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1


def run(work: Path, seed: int) -> int:
    """All stages. Training is skipped where the model exists, and resumes where it was stopped."""
    began, stages = time.perf_counter(), Stages(work / "logs")
    models = {name: work / name / "model" for name in ("clip", "sam", "catseg", "longer", "sammi")}
    evaluations = {title: _evaluation(title, work, models) for title in _ROWS}
    # Models this small leave much of two cores idle: stages that do not depend on each other run at
    # the same time.
    stages.run(
        convert("convert clip", "clip", "openshapes_clip", models["clip"]),
        convert("convert sam", "sam", "openshapes_sam", models["sam"]),
    )
    stages.run(
        train("train catseg", "openshapes_catseg", work / "catseg", f"seed={seed}",
              f"task.clip={models['clip']}"),
        evaluations["CLIP, zero-shot"],
    )  # fmt: skip
    start = (f"seed={seed}", f"task.segmenter={models['catseg']}")
    stages.run(
        train("train sammi", "openshapes_sammi", work / "sammi", *start,
              f"task.sam={models['sam']}"),
        train("train catseg on", "openshapes_sammi", work / "longer", *start,
              "task.model.masks=none", "task.mask_noise=none"),
    )  # fmt: skip
    stages.run_queue([*evaluations.values(), _pictures(work, models)], at_once=2)
    table = _table(evaluations, stages, time.perf_counter() - began)
    write_atomic(work / "results.md", table)
    print(f"\n{table}\nTable: {work / 'results.md'}\nPictures: {work / 'images'}")
    return 0


def _evaluation(title: str, work: Path, models: dict[str, Path]) -> Job:
    name, settings = _ROWS[title]
    folder = work / name / "-".join(["eval", *(s.partition("=")[2] for s in settings)])
    label = " ".join(["evaluate", name, *(s.partition("=")[2] for s in settings)])
    size = f"eval.num_examples={_IMAGES}"
    return evaluate(label, models[name], folder, [_DATASET], size, "eval.boundary=true", *settings)


def _pictures(work: Path, models: dict[str, Path]) -> Job:
    command = ("examples/compare.py", "--catseg", str(models["longer"]))
    command += ("--sammi", str(models["sammi"]), "--out", str(work / "images"))
    return Job("pictures", work / "images", (*command, "--scenes", *map(str, _SCENES)))


def _table(evaluations: dict[str, Job], stages: Stages, seconds: float) -> str:
    results = [
        {**result, "dataset": title}
        for title, job in evaluations.items()
        for result in json.loads(job.made.read_text())["results"]
    ]
    times = "\n".join(f"| {name} | {value:.0f} |" for name, value in stages.times.items())
    return (
        f"# Demo: OpenShapes, {_DATASET}\n\nPer cent; *seen* and *unseen* are class means of IoU "
        f"under one confusion over all 48 classes.\n\n{markdown(results)}\n\n"
        f"| stage | seconds |\n|---|---|\n{times}\n| all, from start to end | {seconds:.0f} |\n"
    )


if __name__ == "__main__":
    sys.exit(main())
