"""`make pretrain`: trains the small models that come with the package, and puts them into it.

The CLIP and the SAM are written as Hugging Face checkpoints, the SAM-MI on them as a model folder,
all with 16-bit weights. Each gets a README with its command, its training and its scores, and the
log of its training. What was interrupted resumes.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from stages import Job, Stages, convert, evaluate, train

from sammi_jax.convert.huggingface import write_checkpoint
from sammi_jax.files import read_json, write_atomic
from sammi_jax.weights.bundled import DEFAULT, FOLDER

_LOG_EVERY = 50  # steps between two lines of the logs that are kept
# Scenes that no choice was made on.
_DATASETS = ("os48/test_seen", "os48/test_unseen")
_CATSEG = ("steps=600", "checkpoint_every=100")
_SAMMI = ("steps=300", "checkpoint_every=100")

_FRONT_MATTER = "---\nlicense: apache-2.0\n---\n"

_TITLES = {
    "openshapes_clip": "A small CLIP",
    "openshapes_sam": "A small SAM",
    "openshapes": "A small SAM-MI",
}


def main() -> None:
    """Train, write, evaluate."""
    parser = argparse.ArgumentParser(description="Train the models that come with the package.")
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/pretrain"), help="for runs and logs"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the bundled models")
    options = parser.parse_args()
    pretrain(options.workdir.resolve(), options.out.resolve())


def pretrain(work: Path, out: Path) -> None:
    """All stages; what is done is not done again, but what is written for users is new."""
    stages = Stages(work / "logs")
    towers = {
        "openshapes_clip": train("train clip", "openshapes_clip", work / "clip"),
        "openshapes_sam": train("train sam", "openshapes_sam", work / "sam"),
    }
    stages.run(*towers.values())
    for name, job in towers.items():
        _replace(out / name, lambda new, job=job: _write_tower(job.made, new))
    # From here on with the weights that users get.
    clip, sam = work / "given_clip", work / "given_sam"
    stages.run(
        convert("convert clip", "clip", out / "openshapes_clip", clip),
        convert("convert sam", "sam", out / "openshapes_sam", sam),
    )
    catseg = train(
        "train catseg", "openshapes_catseg", work / "catseg", f"task.clip={clip}", *_CATSEG
    )
    stages.run(catseg)
    sammi = train(
        "train sammi", "openshapes_sammi", work / "sammi", f"task.segmenter={catseg.made}",
        f"task.sam={sam}", *_SAMMI,
    )  # fmt: skip
    stages.run(sammi)
    stages.run(
        convert("convert sammi", "sammi", sammi.made, work / "given_sammi", "--dtype", "float16")
    )
    _replace(out / DEFAULT, lambda new: shutil.copytree(work / "given_sammi", new))
    scores = {
        name: evaluate(f"evaluate {name}", model, work / "scores" / name, _DATASETS)
        for name, model in (
            ("openshapes_clip", clip),
            ("openshapes_sam", sam),
            (DEFAULT, work / "given_sammi"),
        )
    }
    stages.run_queue(list(scores.values()), at_once=2)
    for name, job in {**towers, DEFAULT: sammi}.items():
        _describe(out / name, job, scores[name], work)


def _write_tower(model: Path, new: Path) -> None:
    write_checkpoint(model, new)
    # Conversion finds the license in the model card; the scores follow when there are some.
    write_atomic(new / "README.md", _FRONT_MATTER)


def _replace(folder: Path, make: Callable[[Path], object]) -> None:
    """Make a folder anew, in the place of what is there."""
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    make(new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _describe(folder: Path, job: Job, scores: Job, work: Path) -> None:
    """README.md and the log of the training."""
    run = job.made.parent
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    kept = [record for record in records if record.get("step", 0) % _LOG_EVERY == 0]
    write_atomic(folder / "log.jsonl", "".join(json.dumps(record) + "\n" for record in kept))
    source = read_json(job.made / "config.json")["source"]
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    command = shlex.join(["sammi", *job.command[2:]]).replace(str(work), "runs/pretrain")
    table = (scores.made.with_name("results.md")).read_text().partition("\n\n")[2].strip()
    write_atomic(
        folder / "README.md",
        f"{_FRONT_MATTER}\n# {_TITLES[folder.name]}, trained on OpenShapes\n\n"
        f"Made by `make pretrain` with\n\n    {command}\n\n"
        f"{source['steps']} steps, seed {source['seed']}, configuration {source['config_sha256']}. "
        f"The scenes are generated (docs/openshapes.md), so the license is this project's, "
        f"Apache-2.0.\nSHA-256 of model.safetensors ({weights.stat().st_size:,} bytes): {digest}\n"
        f"\nScores of these weights on scenes that no choice was made on:\n\n{table}\n",
    )


if __name__ == "__main__":
    sys.exit(main())
