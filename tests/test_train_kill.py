"""`train.py` as users run it: killed at any moment, asked to end, and run again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
EXPERIMENT = f"""
from dataclasses import replace

from sammi_jax.config import CLIP_SIZES
from sammi_jax.config.experiment import CaptionConfig, OptimConfig, TrainConfig

clip = CLIP_SIZES["openshapes"]
one = lambda tower: replace(tower, num_layers=1)
config = TrainConfig(
    task=CaptionConfig(model=replace(clip, vision=one(clip.vision), text=one(clip.text))),
    optim=OptimConfig(peak_lr=2e-3, clip_norm=1.0),
    steps={STEPS},
    batch_size=4,
    checkpoint_every=2,
    log_every=1,
)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(EXPERIMENT)
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A folder where the experiment was trained without a break; tests only read it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert finish(start(config, workdir)) == 0
    return workdir


def start(config, workdir):
    # compiled once: most of a run's time would be the compiler's
    cache = config.parent / "compiled"
    return subprocess.Popen(
        [sys.executable, ROOT / "train.py", "--config", config, "--workdir", workdir],
        env=os.environ
        | {
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.DEVNULL,
        stderr=(config.parent / "errors.txt").open("w"),
    )


def finish(process):
    return process.wait(timeout=300)


def losses(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def assert_equal_runs(workdir, straight):
    assert losses(workdir) == losses(straight)
    models = [folder / "model" / "model.safetensors" for folder in (workdir, straight)]
    assert models[0].read_bytes() == models[1].read_bytes()


def wait_for_steps(process, workdir, steps):
    log, deadline = workdir / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and len(log.read_text().splitlines()) >= steps:
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_at_any_moment(config, straight, tmp_path):
    """20 kills: half at a random moment, half while a checkpoint is being written."""
    rng = random.Random(0)
    workdir, kills, in_save, lost = tmp_path / "run", 0, 0, []
    while kills < 20:
        if (workdir / "model").exists():  # this run is over: begin another
            assert_equal_runs(workdir, straight)
            workdir = tmp_path / f"run{kills}"
        process = start(config, workdir)
        before = len(losses(workdir)) if (workdir / "log.jsonl").is_file() else 0
        if kills % 2:
            wait_for_steps(process, workdir, before - 1 + rng.randrange(2, 8))
            in_save += wait_for_save(process, workdir)
        else:
            time.sleep(rng.uniform(0.5, 12))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert finish(process) in (0, -signal.SIGKILL)
        lost.append(steps_lost(workdir))
    while not (workdir / "model").exists():
        assert finish(start(config, workdir)) == 0
    assert_equal_runs(workdir, straight)
    assert in_save >= 3
    assert max(lost) <= 4  # a save every 2 steps, and one may be in flight


def wait_for_save(process, workdir):
    """Return while a save is under way: whether one was seen."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any((workdir / "checkpoints").glob("*tmp*")):
            return True
    return False


def steps_lost(workdir):
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    logged = losses(workdir) if (workdir / "log.jsonl").is_file() else {}
    return max(logged, default=0) - saved


@pytest.mark.slow
def test_sigterm_has_its_own_exit_code(config, straight, tmp_path):
    for signals in (1, 2, 3):
        process = start(config, tmp_path / "run")
        wait_for_steps(process, tmp_path / "run", 8 * signals)
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        assert finish(process) == 75
        message = (config.parent / "errors.txt").read_text().splitlines()[-1]
        assert message.endswith("the state is saved, and the same command resumes from there")
    assert finish(start(config, tmp_path / "run")) == 0
    assert_equal_runs(tmp_path / "run", straight)
