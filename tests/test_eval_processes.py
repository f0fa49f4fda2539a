"""`eval.py` as users run it: killed and resumed, and as one job of two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from sammi_jax.config.model import CLIP_SIZES
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.models.clip import Clip
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.model_folder import write_model
from sammi_jax.weights.params import flat_params
from tests.xla_flags import fast_flags

ROOT = Path(__file__).resolve().parent.parent
DATASET, IMAGES = "os48/val_unseen", 24


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "clip"
    config = CLIP_SIZES["openshapes"]
    params = flat_params(Clip(config, rngs=nnx.Rngs(0)))
    write_model(
        folder, "clip", config, params,
        source={}, licence="none", tokenizer=Tokenizer(build_tokenizer()),
    )  # fmt: skip
    return folder


KILL_AT_SAVE = """
import os, signal
from sammi_jax.evaluation.partial import PartialResult
save = PartialResult.save
def save_and_kill(partial, totals, batches_done):
    save(partial, totals, batches_done)
    if batches_done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
PartialResult.save = save_and_kill
"""


def start(folder, workdir, *arguments, devices=1, before=""):
    """``eval.py`` after the statements ``before``."""
    code = f"{before}\nimport runpy; runpy.run_path({str(ROOT / 'eval.py')!r}, run_name='__main__')"
    return subprocess.Popen(
        [
            sys.executable, "-c", code, "--config", ROOT / "configs/openshapes_sammi.py",
            "--model", folder, "--datasets", DATASET, "--workdir", workdir,
            "--set", f"eval.num_examples={IMAGES}", *arguments,
        ],
        env=os.environ | {"XLA_FLAGS": fast_flags(devices, fused=True), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def finish(*processes):
    for process in processes:
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, out + err


def results(workdir):
    found = json.loads((workdir / "results.json").read_text())["results"]
    return [{k: v for k, v in result.items() if k != "timing"} for result in found]


def test_killed_and_resumed(clip_folder, tmp_path):
    finish(start(clip_folder, tmp_path / "whole"))
    settings = ("--set", "eval.batch_size=1", "--set", "eval.save_every=1")
    workdir = tmp_path / "killed"
    process = start(clip_folder, workdir, *settings, before=KILL_AT_SAVE)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == -signal.SIGKILL, err
    partial = workdir / "partial" / "os48_val_unseen.npz"
    assert partial.exists()
    finish(start(clip_folder, workdir, *settings))
    assert results(workdir) == results(tmp_path / "whole")
    assert not partial.exists()


@pytest.mark.slow
def test_two_processes(clip_folder, tmp_path):
    finish(start(clip_folder, tmp_path / "one", devices=8))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id")
    labels = ("--set", "eval.save_labels=True")
    finish(
        *(
            start(clip_folder, tmp_path / "two", *labels, *job, str(rank), devices=4)
            for rank in range(2)
        )
    )
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert len(list((tmp_path / "two" / "labels" / "os48_val_unseen").iterdir())) == IMAGES


def test_half_of_a_job(clip_folder, tmp_path):
    process = start(clip_folder, tmp_path, "--num-processes", "2")
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1].startswith("sammi eval: --coordinator, --num-processes and")
