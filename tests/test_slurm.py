"""`launch/slurm/train.sbatch` under a real Slurm: `make test-slurm`, which starts one."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import assert_equal_runs
from tests.xla_flags import fast_flags

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
# What happens once process 1 has logged step 10, 20 and 30: what Slurm does before the time limit,
# what an operator or preemption does, and what a machine does.
TROUBLES = """\
scancel --signal=TERM $SLURM_JOB_ID
scontrol requeue $SLURM_JOB_ID
kill -9 {watchdog}"""
EXPERIMENT = """
import os
import subprocess
from dataclasses import replace

from sammi_jax.config import CLIP_SIZES, CaptionConfig, OptimConfig, TrainConfig
from sammi_jax.training.metrics_log import Log

clip = CLIP_SIZES["openshapes"]
one = lambda tower: replace(tower, num_layers=1)
config = TrainConfig(
    task=CaptionConfig(model=replace(clip, vision=one(clip.vision), text=one(clip.text))),
    optim=OptimConfig(peak_lr=2e-3, clip_norm=1.0),
    steps=40,
    batch_size=4,
    checkpoint_every=2,
    log_every=1,
)

restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
troubles = os.environ["TROUBLES"].splitlines()
write = Log.write


def write_and_trouble(log, step, metrics):
    write(log, step, metrics)
    if step == 10 * (restarts + 1) and restarts < len(troubles):
        if os.environ["SLURM_PROCID"] == "1":
            # not checked: what ends the job's processes may end this command as well
            subprocess.run(troubles[restarts].format(watchdog=os.getppid()), shell=True)


Log.write = write_and_trouble
"""


def submit(folder, config, workdir, *, troubles):
    """Submit a job of one process on each of the two nodes; its number."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "TROUBLES": troubles,
        "XLA_FLAGS": fast_flags(fused=True),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    command = [
        "sbatch",
        "--parsable",
        "--nodes=2",
        SCRIPT,
        "--config",
        config,
        "--workdir",
        workdir,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def finished(job):
    """Slurm's description of a job, once that is over for good."""
    while True:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", str(job)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        state = re.search(r"JobState=(\w+)", shown)[1]
        if state == "PENDING" and "Reason=BeginTime" in shown:  # Slurm lets a requeued job wait
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
        if state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"):
            return shown
        time.sleep(1)


@pytest.mark.slurm
def test_requeued_until_it_is_done(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(EXPERIMENT)
    runs = [tmp_path / "straight", tmp_path / "troubled"]
    jobs = [
        submit(tmp_path, config, workdir, troubles=troubles)
        for workdir, troubles in zip(runs, ("", TROUBLES), strict=True)
    ]
    shown = [finished(job) for job in jobs]
    logs = [(tmp_path / f"sammi-{job}.log").read_text(errors="replace") for job in jobs]
    print(logs[1])
    for text, log, restarts in zip(shown, logs, (0, 3), strict=True):
        assert "JobState=COMPLETED" in text, log
        assert f"Restarts={restarts} " in text, log
    assert "asked to end (SIGTERM) after step 1" in logs[1]
    assert "asked to end (SIGTERM) after step 2" in logs[1]
    assert re.search(r"process 1 \(\S+\) was lost", logs[1])
    codes = re.findall(r"^\S+ exit code (\d+)$", logs[1], re.M)
    assert codes == ["75", "137", "0"]  # scontrol requeue ends the script as well
    assert_equal_runs(*runs)
