"""The same training on other meshes: a cut-down SAM-MI, all parts of which take part."""

import json

import jax
import pytest
from jax.sharding import PartitionSpec

from sammi_jax.config.files import load_config
from sammi_jax.parallel import mesh as mesh_rules
from sammi_jax.training.state import trainable_paths
from sammi_jax.training.tasks import make_task
from tests.processes import finish, start_job, start_process

# Masks are open to what a random SAM gives. Rounding differs between meshes, and AdamW makes the
# more of it the larger its steps: at CAT-Seg's 2e-4 from the first step on, losses near step 40
# are 3e-5 apart; as below, 4.5e-7.
EXPERIMENT = """
from dataclasses import replace

from sammi_jax.config import (
    CLIP_SIZES, SAM_SIZES, SEGMENTER_SIZES, DmiConfig, MaskConfig, MaskFilterConfig, OptimConfig,
    SegmentConfig, TrainConfig, TsppConfig,
)

clip = CLIP_SIZES["openshapes"]
masks = MaskConfig(
    sam=replace(SAM_SIZES["openshapes"], num_layers=1, num_stages=1),
    tspp=TsppConfig(num_points=8, scale=30.0, min_score=0.0, sigma=1.5),
    filter=MaskFilterConfig(min_iou=-100.0, min_stability=0.0, max_area=1.0),
    dmi=DmiConfig(num_heads=4),
)
model = replace(
    SEGMENTER_SIZES["openshapes"],
    clip=replace(clip, text=replace(clip.text, num_layers=1)),
    masks=masks,
)
config = TrainConfig(
    task=SegmentConfig(model=model),
    optim=OptimConfig(peak_lr=5e-5, warmup_steps=10),
    steps=50,
    batch_size=8,
    log_every=1,
    checkpoint_every=50,
)
"""
SHARD_ALL = "import sammi_jax.parallel.mesh\nsammi_jax.parallel.mesh.MIN_SHARDED_BYTES = 0"
FSDP = {"8x1": 1, "2x4": 4, "1x8": 8}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "sammi.py").write_text(EXPERIMENT)
    return folder / "sammi.py"


def records(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def run(config, workdir, fsdp=1, devices=8, steps=50, processes=1, slices=1):
    start = start_process if processes == 1 else start_job
    settings = [f"mesh.fsdp={fsdp}", f"mesh.slices={slices}", f"steps={steps}"]
    settings = [word for setting in settings for word in ("--set", setting)]
    started = start(
        config, workdir, *settings, devices=devices, before=SHARD_ALL, precision="highest"
    )
    codes, texts = finish(*([started] if processes == 1 else started))
    assert codes == [0] * processes, texts
    return records(workdir)


@pytest.fixture(scope="module")
def one_device(config, tmp_path_factory):
    return run(config, tmp_path_factory.mktemp("one") / "run", devices=1)


def assert_same_curve(found, expected, name):
    assert len(found) == len(expected)
    apart = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(found, expected, strict=True)]
    print(f"{name}: losses at most {max(apart):.2e} apart (relative), over {len(apart)} steps")
    assert max(apart) <= 1e-5
    assert all(record["masks"] > 0 for record in found)
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", FSDP)
def test_meshes_train_the_same(config, one_device, tmp_path, mesh):
    assert_same_curve(run(config, tmp_path / "run", fsdp=FSDP[mesh]), one_device, mesh)


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "slices"), [(4, 1), (2, 2)])
def test_two_processes_train_the_same(config, one_device, tmp_path, fsdp, slices):
    found = run(config, tmp_path / "run", fsdp=fsdp, devices=4, processes=2, slices=slices)
    assert_same_curve(found, one_device, f"2 processes of 4 devices, {slices} slices")


@pytest.mark.parametrize("fsdp", [4, 8])
def test_the_parameters_are_split(config, fsdp, monkeypatch):
    """What the equality above is about."""
    monkeypatch.setattr(mesh_rules, "MIN_SHARDED_BYTES", 0)
    task = make_task(load_config(config))
    trained = set(trainable_paths(task))
    params = jax.eval_shape(lambda: task.initial_params(0))
    split = {
        path
        for path, value in params.items()
        if mesh_rules.fsdp_spec(path, value.shape, 4, fsdp) != PartitionSpec()
    }
    assert len(split & trained) > len(trained) / 2
    for part in ("clip/", "tspp/", "sam/", "dmi/", "aggregator/"):
        assert any(path.startswith(part) for path in split), part
