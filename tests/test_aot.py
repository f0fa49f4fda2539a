"""Compilation for pods that are not here."""

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from sammi_jax.cli.compile import _best, _details, _parse_grid, _table
from sammi_jax.config.experiment import MeshConfig
from sammi_jax.config.files import load_config
from sammi_jax.errors import SammiError
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.pods.aot import Compiled, abstract_step, describe_topology
from sammi_jax.pods.hlo import Cost

ROOT = Path(__file__).resolve().parent.parent
LIBTPU = Path(sys.prefix) / "tpu"  # where the Makefile puts it: not among JAX's own packages
COST = Cost(
    Counter({"sam_encoder": 300_000_000, "other": 150_000_000}),
    Counter({"sam_encoder": 150_000_000}),
    Counter({"all-reduce": 2 * 10**10}),
)
FLOPS = {"sam_encoder": 2e14}
RESULT = Compiled(
    "v5e:4x4", 1, 16, (16, 1), 64, 7_000_000, 93_000_000, 2**20, 3 * 2**30, 4e14, FLOPS, COST, 1.0
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sammi_vitb16", "sammi_vitl14_336"])
def test_real_sizes_have_a_step_of_shapes(name):
    """Nothing is allocated or compiled: the abstract step of the real configurations traces."""
    config = load_config(ROOT / "configs" / f"{name}.py", ["batch_size=8"])
    mesh = make_mesh(MeshConfig(fsdp=4))
    step, state, batch = abstract_step(config, config.task, mesh)
    after, metrics = jax.eval_shape(step, state, batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert batch.shared["token_ids"].shape == (171, 1, 77)
    assert not any(path.startswith("sam/") for path in state.trainable)
    sharded = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    assert len(sharded) > 20


def test_time_mfu_fit_and_choice():
    """600 million cycles at 1.5 GHz, and 20 GB over links of 200 GB/s."""
    assert (RESULT.compute_s, RESULT.link_s) == pytest.approx((0.4, 0.1))
    assert RESULT.mfu == pytest.approx(4e14 / (0.5 * 16 * 197e12))
    large = replace(RESULT, memory=17 * 2**30, batch_size=640)
    too_large = replace(RESULT, memory=40 * 2**30, batch_size=6400, cost=None)
    slow = replace(RESULT, cost=Cost(Counter(other=3_000_000_000)))
    assert _best([large, too_large, slow, RESULT]) is RESULT
    assert _best([large, too_large]) is None
    table = _table([RESULT, too_large])
    assert (
        "| v5e:4x4 | 16 | 16 x 1 | 64 | 3.00 (16) | 400.00 | 400.0 + 100.0 = 500.0 | 100.0 | "
        "25.4% | all-reduce 19073.5 |"
    ) in table
    assert "| 6400 | 40.00 (16) | 400.00 | does not fit | - | - | - |" in table


def test_collectives_of_several_slices():
    """5 GB over a chip's 3.125 GB/s of the data center network, beside those inside the slices."""
    cost = replace(COST, sent_dcn=Counter({"all-reduce": 5 * 10**9}))
    two = replace(RESULT, slices=2, chips=32, cost=cost)
    assert (two.ici_s, two.dcn_s) == pytest.approx((0.1, 1.6))
    assert two.estimated_s == pytest.approx(0.4 + 0.1 + 1.6)
    assert "| 2 x v5e:4x4 | 32 |" in _table([two])
    assert "| ICI: all-reduce 19073.5; DCN: all-reduce 4768.4 |" in _table([two])
    between = "100.0 ms inside the slices (ICI), 1600.0 ms between them (DCN)"
    assert between in _details(two)
    assert "DCN" not in _details(RESULT) + _table([RESULT])


def test_details_name_the_parts():
    details = _details(RESULT)
    assert "7,000,000 train, 93,000,000 are frozen. Optimizer state: 1.0 MiB a chip" in details
    share = 100 * 2e14 / (0.3 * 16 * 197e12)
    assert re.search(rf"sam_encoder +300.00 +75.0% +100.00 +{share:.1f}%\n", details)
    assert re.search(r"other +100.00 +25.0% +0.00 +0.0%$", details)
    unknown = replace(RESULT, cost=replace(COST, unknown_kernels=2))
    assert "2 custom calls without known bundles" in _details(unknown)


def test_meshes_of_pods():
    """Also where an axis of the mesh is no axis of the pod: 2 of 4 x 4, 8 of 4 x 4 x 4."""
    script = """
from sammi_jax.errors import SammiError
from sammi_jax.config.experiment import MeshConfig
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.pods.aot import describe_topology
for topology, fsdp in (("v5e:4x4", 2), ("v6e:4x4", 2), ("v6e:4x4", 4), ("v5p:4x4x4", 8)):
    mesh = make_mesh(MeshConfig(fsdp=fsdp), describe_topology(topology))
    print(topology, *mesh.devices.shape, len({device.id for device in mesh.devices.flat}))
mesh = make_mesh(MeshConfig(fsdp=4, slices=3), describe_topology("v5e:4x4", 3))
print(*mesh.devices.shape, [{d.slice_index for d in row} for row in mesh.devices])
for slices in (1, 2):
    try:
        make_mesh(MeshConfig(slices=slices), describe_topology("v5e:4x4", 3))
    except SammiError as error:
        print(error)
"""
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBTPU}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "v5e:4x4 8 2 16", "v6e:4x4 8 2 16", "v6e:4x4 4 4 16", "v5p:4x4x4 8 8 64",
        "12 4 " + str([{0}] * 4 + [{1}] * 4 + [{2}] * 4),
        "mesh.slices=1, but the 48 devices are in 3 slices",
        "mesh.slices=2, but the 48 devices are in 3 slices",
    ], done.stderr[-2000:]  # fmt: skip


def test_bad_input():
    assert _parse_grid("1,4x32,64") == [(1, 32), (1, 64), (4, 32), (4, 64)]
    with pytest.raises(SammiError, match="--grid 1,4"):
        _parse_grid("1,4")
    for name in ("v9:2x2", "v5e", "v5e:axb"):
        with pytest.raises(SammiError, match="not a topology"):
            describe_topology(name)


@pytest.mark.parametrize("slices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compiles_for_a_small_pod(slices):
    """The command, from the training step to the table, with what compiles fast."""
    small = ["batch_size=8", f"mesh.slices={slices}", "compute_dtype=bfloat16",
             "task.num_classes=4", "task.model.clip.text.num_layers=1",
             "task.model.aggregator.num_layers=0", "optim.muon_ratio=none"]  # fmt: skip
    command = [sys.executable, "-m", "sammi_jax", "compile", "--config",
               ROOT / "configs/openshapes_catseg.py", "--topology", "v5e:2x2",
               *(word for setting in small for word in ("--set", setting))]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBTPU}"}
    environment |= {"JAX_OPTIMIZATION_LEVEL": "O0", "JAX_MEMORY_FITTING_LEVEL": "O0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    if slices == 1:
        assert "| v5e:2x2 | 4 | 4 x 1 | 8 |" in done.stdout
        assert "all-reduce" in done.stdout
    else:
        assert "| 2 x v5e:2x2 | 8 | 8 x 1 | 8 |" in done.stdout
        assert re.search(r"ICI: .*all-reduce [\d.]+.*; DCN: .*all-reduce [\d.]+", done.stdout)
    for part in ("clip_image", "aggregator", "aggregator backward", "optimizer"):
        assert re.search(rf"^  {part} +[\d.]+ +[\d.]+%", done.stdout, re.MULTILINE), done.stdout
