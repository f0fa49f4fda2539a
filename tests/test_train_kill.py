"""`train.py` as users run it: killed at any moment, asked to end, and run again."""

import random
import signal

import pytest

from sammi_jax.training.checkpoint import checkpoint_steps
from tests.processes import assert_equal_runs, finish, losses, signal_at, start_process

STEPS = 60
OPERATIONS = 100
EXPERIMENT = f"""
from dataclasses import replace

from sammi_jax.config import CLIP_SIZES, CaptionConfig, OptimConfig, TrainConfig

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
    assert finish(start_process(config, workdir))[0] == [0]
    return workdir


# Every change of a run's folder goes through one of these.
KILL = """
import itertools, os, signal, sys
numbers = itertools.count(1)
def kill(event, args):
    if event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"):
        if {workdir!r} in str(args[0]) and next(numbers) == {number}:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""


@pytest.mark.slow
def test_killed_at_any_moment(config, straight, tmp_path):
    """20 kills, each before a random one of the run's file operations; most are within a save."""
    rng = random.Random(0)
    workdir, kills, in_save, lost = tmp_path / "run", 0, 0, []
    while kills < 20:
        if (workdir / "model").exists():  # this run is over: begin another
            assert_equal_runs(workdir, straight)
            workdir = tmp_path / f"run{kills}"
        kill = KILL.format(workdir=str(workdir), number=rng.randrange(1, OPERATIONS))
        (code,), texts = finish(start_process(config, workdir, before=kill))
        assert code in (0, -signal.SIGKILL), texts
        kills += code != 0
        in_save += any((workdir / "checkpoints").glob("*tmp*"))
        lost.append(steps_lost(workdir))
    while not (workdir / "model").exists():
        assert finish(start_process(config, workdir))[0] == [0]
    assert_equal_runs(workdir, straight)
    print(f"{in_save} of {kills} kills within a save, steps lost {lost}")
    assert in_save >= 3
    assert max(lost) <= 4  # a save every 2 steps, and one may be in flight


def steps_lost(workdir):
    logged = losses(workdir) if (workdir / "log.jsonl").is_file() else {}
    return max(logged, default=0) - max(checkpoint_steps(workdir), default=0)


@pytest.mark.slow
def test_sigterm_has_its_own_exit_code(config, straight, tmp_path):
    for signals in (1, 2, 3):
        step = 8 * signals
        process = start_process(
            config, tmp_path / "run", before=signal_at(step, "SIGTERM", times=signals)
        )
        (code,), (text,) = finish(process)
        assert code == 75, text
        line = text.strip().splitlines()[-1]
        assert line.startswith(f"sammi train: asked to end (SIGTERM) after step {step + 1} of 60")
    assert finish(start_process(config, tmp_path / "run"))[0] == [0]
    assert_equal_runs(tmp_path / "run", straight)
