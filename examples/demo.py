"""`make demo`: training, evaluation and segmentation on generated data, with the `sammi` commands.

Trains a tiny CLIP, a tiny SAM, CAT-Seg on the CLIP, and SAM-MI on both, evaluates them on classes
that training saw and did not see, and segments a few scenes. Each stage is one command, which is
printed before it runs: `sammi train`, `sammi eval` or `sammi segment`.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from sammi_jax.data.openshapes import OpenShapes
from sammi_jax.errors import SammiError
from sammi_jax.evaluation.report import markdown
from sammi_jax.files import write_atomic

_ROOT = Path(__file__).resolve().parent.parent
_SAMMI = ("-m", "sammi_jax")  # `python -m sammi_jax` is the command `sammi`
_DATASET, _IMAGES = "os48/val_unseen", 120  # it holds classes of both kinds
# Programs this small run as fast when XLA optimizes less, and compile a good deal faster.
_ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=1"} | os.environ
_OUT = "images"
_SCENES = (1, 2, 5, 8)  # examples of val_unseen that are segmented


def main(arguments: list[str] | None = None) -> int:
    """Run every stage; the exit code is 1 if one fails."""
    parser = argparse.ArgumentParser(description="Train and evaluate the tiny models.")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"), help="for all output")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and sampling")
    options = parser.parse_args(arguments)
    try:
        return run(options.workdir, options.seed)
    except subprocess.CalledProcessError as error:
        print(f"demo: this command failed: {shlex.join(error.cmd)}", file=sys.stderr)
        return 1
    except SammiError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1


def run(work: Path, seed: int) -> int:
    """All stages. Training is skipped where the model exists, and resumes where it was stopped."""
    work = work.resolve()
    stages = _Stages(work)
    clip, sam, catseg, sammi = (
        work / name / "model" for name in ("clip", "sam", "catseg", "sammi")
    )
    # Models this small leave much of two cores idle: stages that do not depend on each other run at
    # the same time.
    with stages.beside("train sam", sam, *_training(sam, seed)):
        stages.run("train clip", clip, *_training(clip, seed))
        stages.run("train catseg", catseg, *_training(catseg, seed, f"task.clip={clip}"))
    with (
        stages.beside("evaluate clip", None, *_evaluation(clip)),
        stages.beside("evaluate catseg", None, *_evaluation(catseg)),
    ):
        settings = (f"task.segmenter={catseg}", f"task.sam={sam}")
        stages.run("train sammi", sammi, *_training(sammi, seed, *settings))
    with stages.beside("segment", None, *_segmentation(work, sammi)):
        stages.run("evaluate sammi", None, *_evaluation(sammi))
    titled = (("CLIP, zero-shot", clip), ("CAT-Seg", catseg), ("SAM-MI", sammi))
    table = _table([result for title, model in titled for result in _results(title, model)], stages)
    write_atomic(work / "results.md", table)
    print(f"\n{table}\nTable: {work / 'results.md'}\nImages: {work / _OUT}")
    return 0


class _Stages:
    """Runs the commands of the stages.

    Attributes:
        times: seconds of each stage that had the terminal.
        began: when, on the clock of ``time.perf_counter``.
    """

    def __init__(self, work: Path):
        self.times: dict[str, float] = {}
        self.began = time.perf_counter()
        self._logs = work / "logs"

    def run(self, stage: str, made: Path | None, *command: object) -> None:
        """Run a command on the terminal, unless the folder that it makes exists."""
        if made is not None and made.is_dir():
            return
        words = [sys.executable, *map(str, command)]
        print(f"\n[{stage}] {_shown(words)}", flush=True)
        began = time.perf_counter()
        subprocess.run(words, check=True, cwd=_ROOT, env=_ENVIRONMENT)
        self.times[stage] = time.perf_counter() - began

    @contextmanager
    def beside(self, stage: str, made: Path | None, *command: object) -> Iterator[None]:
        """Run a command while the block runs, unless the folder that it makes exists.

        It prints to a file.

        Raises:
            subprocess.CalledProcessError: it failed; what it printed is shown.
        """
        if made is not None and made.is_dir():
            yield
            return
        words = [sys.executable, *map(str, command)]
        log = self._logs / f"{stage.replace(' ', '_')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(
            f"\n[{stage}, in parallel with the next stage] {_shown(words)}\nprints to {log}",
            flush=True,
        )
        with log.open("w") as output:
            process = subprocess.Popen(
                words, cwd=_ROOT, env=_ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield
            if process.wait() != 0:
                print(log.read_text(), file=sys.stderr)
                raise subprocess.CalledProcessError(process.returncode, words)
        finally:
            process.terminate()
            process.wait()


def _shown(words: Sequence[str]) -> str:
    return shlex.join(["python", *words[1:]])


def _training(model: Path, seed: int, *settings: str) -> list[object]:
    folder = model.parent
    pairs = [part for setting in (f"seed={seed}", *settings) for part in ("--set", setting)]
    return [*_SAMMI, "train", "--config", f"openshapes_{folder.name}", "--workdir", folder, *pairs]


def _evaluation(model: Path) -> list[object]:
    return [*_SAMMI, "eval", "--config", "openshapes_sammi",
            "--set", f"eval.num_examples={_IMAGES}", "--model", model,
            "--datasets", _DATASET, "--workdir", model.parent / "eval"]  # fmt: skip


def _results(title: str, model: Path) -> list[dict]:
    results = json.loads((model.parent / "eval" / "results.json").read_text())["results"]
    return [{**result, "dataset": f"{title}, {result['dataset']}"} for result in results]


def _segmentation(work: Path, model: Path) -> list[object]:
    """`sammi segment` on a few scenes, which are written as PNG files first."""
    scenes = work / "scenes"
    source = OpenShapes("val_unseen", "os48")
    shutil.rmtree(scenes, ignore_errors=True)
    scenes.mkdir(parents=True)
    for index in _SCENES:
        Image.fromarray(np.asarray(source[index]["image"])).save(scenes / f"scene{index}.png")
    return [*_SAMMI, "segment", *sorted(scenes.iterdir()), "--classes",
            ", ".join(source.view.class_names), "--model", model, "--out",
            work / _OUT]  # fmt: skip


def _table(results: list[dict], stages: _Stages) -> str:
    times = stages.times | {"all, from start to end": time.perf_counter() - stages.began}
    seconds = "\n".join(f"| {stage} | {value:.0f} |" for stage, value in times.items())
    return (
        "# Demo: OpenShapes, os48\n\nmIoU in per cent; *seen* and *unseen* are class means under "
        "one confusion over all 48 classes.\n\n"
        f"{markdown(results)}\n\n| stage | seconds |\n|---|---|\n{seconds}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
