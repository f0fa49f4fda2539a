"""`make demo`: the main job on embedded data, through the commands that real runs use.

Trains a tiny CLIP, a tiny SAM, CAT-Seg on the CLIP, and SAM-MI on both, evaluates them on classes
that training saw and did not see, and segments a few scenes. Every stage is a command of its own,
printed before it runs; nothing here knows how to train or to evaluate.
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

_ROOT = Path(__file__).resolve().parent.parent
_DATASET, _IMAGES = "os48/val_unseen", 200  # it holds classes of both kinds
# Programs this small run as fast when XLA optimises less, and compile a good deal faster.
_ENVIRONMENT = {"XLA_FLAGS": "--xla_backend_optimization_level=1"} | os.environ
_PICTURES = (1, 2, 5, 8)  # scenes of val_unseen that are drawn


def main(arguments: list[str] | None = None) -> int:
    """Run every stage; the exit code of the first that fails."""
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
    """All stages in order; a stage whose result is already there is resumed, or left alone."""
    times: dict[str, float] = {}
    began = time.perf_counter()
    train = lambda name, *settings: _train(work, seed, times, name, *settings)  # noqa: E731
    with _beside(work, seed, "sam") as sam:
        clip = train("clip")
        catseg = train("catseg", f"task.clip={clip}")
    sammi = train("sammi", f"task.segmenter={catseg}", f"task.sam={sam}")
    results = []
    for title, folder in (("CLIP, zero-shot", clip), ("CAT-Seg", catseg), ("SAM-MI", sammi)):
        results += _evaluate(work, times, title, folder)
    pictures = _pictures(work, times, sammi)
    table = _table(results, times | {"all, from start to end": time.perf_counter() - began})
    (work / "results.md").write_text(table)
    print(f"\n{table}\nTable: {work / 'results.md'}\nPictures: {pictures}")
    return 0


def _command(times: dict[str, float], stage: str, script: str, *arguments: object) -> None:
    command = [sys.executable, *script.split(), *map(str, arguments)]
    print(f"\n[{stage}] {shlex.join(['python', *command[1:]])}", flush=True)
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=_ROOT, env=_ENVIRONMENT)
    times[stage] = time.perf_counter() - began


def _train(work: Path, seed: int, times: dict[str, float], name: str, *settings: str) -> Path:
    folder = work.resolve() / name
    if not (folder / "model").is_dir():
        _command(times, f"train {name}", "train.py", *_training(folder, seed, name, settings))
    return folder / "model"


def _training(folder: Path, seed: int, name: str, settings: Sequence[str] = ()) -> list[str]:
    """Arguments of train.py."""
    config = f"configs/openshapes_{name}.py"
    pairs = [part for setting in (f"seed={seed}", *settings) for part in ("--set", setting)]
    return ["--config", config, "--workdir", str(folder), *pairs]


@contextmanager
def _beside(work: Path, seed: int, name: str) -> Iterator[Path]:
    """Train while the block runs: small models leave a good part of two cores idle.

    What it prints goes to a file; the block's own stages keep the terminal.
    """
    folder = work.resolve() / name
    if (folder / "model").is_dir():
        yield folder / "model"
        return
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "train.py", *_training(folder, seed, name)]
    shown = shlex.join(["python", *command[1:]])
    print(f"\n[train {name}] {shown}\n(beside the next stages; it prints to {log})", flush=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=_ROOT, env=_ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield folder / "model"
        if process.wait() != 0:
            print(log.read_text(), file=sys.stderr)
            raise subprocess.CalledProcessError(process.returncode, command)
    finally:
        process.terminate()
        process.wait()


def _evaluate(work: Path, times: dict[str, float], title: str, model: Path) -> list[dict]:
    folder = model.parent / "eval"
    _command(times, f"evaluate {title}", "eval.py", "--config", "configs/openshapes_sammi.py",
             "--set", f"eval.num_examples={_IMAGES}", "--checkpoint", model,
             "--datasets", _DATASET, "--workdir", folder)  # fmt: skip
    results = json.loads((folder / "results.json").read_text())["results"]
    return [{**result, "dataset": f"{title}, {result['dataset']}"} for result in results]


def _pictures(work: Path, times: dict[str, float], model: Path) -> Path:
    """Segment a few scenes with `sammi segment`; each is also saved as it is."""
    scenes, out = work.resolve() / "scenes", work.resolve() / "pictures"
    source = OpenShapes("val_unseen", "os48")
    shutil.rmtree(scenes, ignore_errors=True)
    scenes.mkdir(parents=True)
    for index in _PICTURES:
        Image.fromarray(np.asarray(source[index]["image"])).save(scenes / f"scene{index}.png")
    classes = ", ".join(source.view.class_names)
    _command(times, "segment", "-m sammi_jax segment", *sorted(scenes.iterdir()), "--classes",
             classes, "--checkpoint", model, "--out", out)  # fmt: skip
    return out


def _table(results: list[dict], times: dict[str, float]) -> str:
    seconds = "\n".join(f"| {stage} | {value:.0f} |" for stage, value in times.items())
    return (
        "# Demo: OpenShapes, os48\n\nmIoU in per cent; *seen* and *unseen* are class means under "
        "one confusion over all 48 classes.\n\n"
        f"{markdown(results)}\n\n| stage | seconds |\n|---|---|\n{seconds}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
