"""`launch/gpu_check.py` on the CPU, with sizes that compile fast."""

import re
import runpy
from pathlib import Path

import pytest

GPU_CHECK = Path(__file__).resolve().parent.parent / "launch" / "gpu_check.py"
SMALL = ["batch_size=8", "task.num_classes=4", "task.model.clip.text.num_layers=1",
         "task.model.aggregator.num_layers=0", "optim.muon_ratio=none"]  # fmt: skip


def gpu_check(*arguments):
    return runpy.run_path(str(GPU_CHECK))["main"]([*arguments])


@pytest.mark.slow
def test_writes_a_table(tmp_path, capsys):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    out = tmp_path / "table.md"
    code = gpu_check("--config", "openshapes_catseg", *settings, "--steps", "2", "--out", str(out))
    assert code == 0
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", out.read_text(), re.M))
    assert rows["devices"] == "8 x cpu"
    assert "jax 0." in rows["versions"]
    exact = rows["parity with the CPU, float32, exact products: relative error"]
    assert exact == "loss 0.0e+00, gradient 0.0e+00"  # this is the CPU
    rounded = rows["parity with the CPU, bfloat16: relative error"]
    loss, gradient = map(float, re.findall(r"[\d.]+e[-+]\d+", rounded))
    assert 0.0 < loss < 2e-2
    assert 0.0 < gradient < 1e-1
    assert float(rows["images/s"]) > 0.0
    assert rows["step"].startswith("8 images, float32, mesh {'data': 8, 'fsdp': 1}")
    assert rows["MFU"] == "not known: no published peak"
    assert out.read_text() in capsys.readouterr().out


def test_needs_a_segmentation(tmp_path, capsys):
    assert gpu_check("--config", "openshapes_clip", "--out", str(tmp_path / "table.md")) == 1
    error = capsys.readouterr().err
    assert error == "gpu_check: --config openshapes_clip: give a segmentation experiment\n"
    assert not any(tmp_path.iterdir())
