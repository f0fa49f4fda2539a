"""Benchmarks beside torch: equal outputs, records, the guard, and what the page says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sammi_jax.bench import measure, report
from sammi_jax.bench.cases import CASES
from sammi_jax.bench.torch_catseg import TorchAggregator
from sammi_jax.cli import bench as bench_command
from sammi_jax.cli.main import main
from sammi_jax.config.model import AggregatorConfig
from sammi_jax.convert.catseg_keys import AGGREGATOR_PREFIX
from sammi_jax.errors import SammiError
from tests.parity import assert_parity

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"


def test_names_of_the_command():
    assert tuple(CASES) == bench_command.NAMES


@pytest.mark.parametrize(("case", "pooling"), [("T10", 2), ("T6", 2), ("T4", 2), ("T10_pool1", 1)])
def test_torch_aggregator_is_the_reference(goldens, case, pooling):
    """The peer is CAT-Seg: it gives what the reference gave, with padding and with selection."""
    sizes = json.loads((goldens / "catseg_aggregator_pad.json").read_text())["config"]
    config = AggregatorConfig(
        hidden_dim=sizes["hidden_dim"],
        num_heads=sizes["nheads"],
        window_size=sizes["window_size"],
        grid_size=sizes["feature_resolution"][0],
        appearance_dim=sizes["appearance_guidance_proj_dim"],
        text_dim=sizes["text_guidance_proj_dim"],
        decoder_dims=tuple(sizes["decoder_dims"]),
        decoder_guidance_dims=tuple(sizes["decoder_guidance_dims"]),
        decoder_guidance_proj_dims=tuple(sizes["decoder_guidance_proj_dims"]),
        pad_length=6,
    )
    module = TorchAggregator(config, sizes["appearance_guidance_dim"])
    tensors = load_file(goldens / "catseg_aggregator_pad.safetensors")
    state = {key.removeprefix(AGGREGATOR_PREFIX): value for key, value in tensors.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not missing
    assert all(key.endswith("attn_mask") for key in unexpected)
    data = np.load(goldens / "catseg_aggregator_pad.npz")
    names = ("img_feats", "app_guidance", "text_feats", "dec_guidance0", "dec_guidance1")
    features, appearance, text, *high = (torch.from_numpy(data[name]) for name in names)
    text = text[: data[f"{case}/logits"].shape[1], None]
    with torch.no_grad():
        logits = module(features, appearance, text, tuple(high), pooling)
    assert_parity(logits.numpy(), data[f"{case}/logits"], name=f"torch peer {case}")


def run(*arguments) -> int:
    return main(["bench", *map(str, arguments)])


def check_run(name, count, tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert run(name, "--size", "tiny", "--count", count, "--runs", 1, "--out", file) == 0
    out = capsys.readouterr().out
    (record,) = report.read_records(file).values()
    assert (record["case"], record["count"], record["size"]) == (name, count, "tiny")
    assert report.table([record]) in out
    for side in record["sides"].values():
        assert 0 < side["cpu_low_s"] <= side["cpu_s"] <= side["cpu_high_s"]
        assert 0 < side["loaded_mib"] <= side["peak_mib"]
    return record


def test_a_run(tmp_path, capsys):
    """Two processes, equal outputs, a record, and no compilation in the peer's memory."""
    record = check_run("clip_text", 3, tmp_path, capsys)
    assert record["error"] < 1e-5
    assert record["ratio"] == pytest.approx(
        record["sides"]["ours"]["cpu_s"] / record["sides"]["peer"]["cpu_s"]
    )
    assert record["flops"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "clip_text"])
def test_every_case(name, tmp_path, capsys):
    record = check_run(name, 5, tmp_path, capsys)
    assert record["error"] <= CASES[name].tolerance


def test_outputs_that_differ_are_refused():
    ours = {"low": np.ones((2, 3)), "extra": np.zeros(1)}
    assert measure.compare_outputs("clip_image", ours, {"low": np.ones((2, 3))}) == 0
    wrong = {"low": np.full((2, 3), 1.01)}
    with pytest.raises(SammiError, match=r"low differs from torch's by 9.9e-03, more than 1e-04"):
        measure.compare_outputs("clip_image", ours, wrong)
    with pytest.raises(SammiError, match=r"low is \(2, 3\) with us and \(3, 2\) in torch"):
        measure.compare_outputs("clip_image", ours, {"low": np.ones((3, 2))})
    labels = np.arange(4)
    with pytest.raises(SammiError, match=r"labels differs from torch's by 2.5e-01"):
        measure.compare_outputs(
            "image_to_labels", {"labels": labels}, {"labels": np.array([0, 1, 2, 7])}
        )
    not_a_number = {"low": np.full((2, 3), np.nan)}
    with pytest.raises(SammiError, match="differs"):
        measure.compare_outputs("clip_image", not_a_number, {"low": np.ones((2, 3))})


def record(case="resize", count=20, ratio=1.0, **more):
    return {"case": case, "count": count, "size": "base", "ratio": ratio, **more}


def test_records_are_kept_by_case(tmp_path):
    file = tmp_path / "speed.json"
    report.write_records(file, [record(ratio=1.0), record("clip_text", ratio=2.0)])
    report.write_records(file, [record(ratio=3.0)])
    ratios = {key: found["ratio"] for key, found in report.read_records(file).items()}
    assert ratios == {"resize/20/base": 3.0, "clip_text/20/base": 2.0}


def test_slower_than_recorded():
    against = {"resize/20/base": record(ratio=1.0)}
    assert report.slower([record(ratio=1.19)], against) == []
    (line,) = report.slower([record(ratio=1.21)], against)
    assert line.startswith("resize/20/base: 1.21 of torch's CPU seconds, recorded 1.00")
    with pytest.raises(SammiError, match="clip_text/20/base: not among the recorded cases"):
        report.slower([record("clip_text")], against)


def test_slower_is_exit_code_1(tmp_path, monkeypatch, capsys):
    file = tmp_path / "speed.json"
    report.write_records(file, [record(ratio=0.5)])
    found = next(iter(report.read_records(RECORDS).values()))
    monkeypatch.setattr(measure, "measure", lambda *_: found | record(ratio=0.7))
    assert run("resize", "--against", file) == 1
    assert "sammi: slower: resize/20/base: 0.70" in capsys.readouterr().err
    monkeypatch.setattr(measure, "measure", lambda *_: found | record(ratio=0.55))
    assert run("resize", "--against", file) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resize", "--count", "many"], "--count many: write numbers with commas between"),
        (["resize", "--count", "0"], "0 classes: give at least 1"),
        (["resize", "--runs", "0"], "--runs 0: give at least 1"),
        (["resize", "--against", "{file}"], "holds no records; make them with"),
        (["resize", "--out", "{file}"], "holds no records; make them with"),
    ],
)
def test_bad_use(tmp_path, capsys, arguments, message):
    file = tmp_path / "other.json"
    file.write_text("{}")
    assert run(*(part.format(file=file) for part in arguments)) == 1
    assert message in capsys.readouterr().err


def test_without_torch(monkeypatch, capsys):
    monkeypatch.setattr(measure, "installed_version", lambda _: None)
    assert run("resize") == 1
    assert "PyTorch, which is missing: pip install 'sammi_jax[convert]'" in capsys.readouterr().err


def test_page_is_made_of_the_records():
    records = list(report.read_records(RECORDS).values())
    assert report.table(records) in PAGE.read_text()
