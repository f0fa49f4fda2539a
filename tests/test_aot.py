"""Compilation for pods that are not here. The compiler itself (libtpu) only in the slow tests."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from sammi_jax.aot import Compiled, abstract_step, collective_bytes, describe_topology
from sammi_jax.cli.compile import _best, _parse_grid, _table
from sammi_jax.errors import SammiError
from sammi_jax.experiment import MeshConfig, load_config
from sammi_jax.parallel import make_mesh

ROOT = Path(__file__).resolve().parent.parent
RESULT = Compiled("v5e:4x4", 16, (16, 1), 64, 3 * 2**30, 16 * 2**30, 4e14, 0.5, {}, 1.0)


@pytest.mark.parametrize(
    "name", ["sammi_vitb16", pytest.param("sammi_vitl14_336", marks=pytest.mark.slow)]
)
def test_real_sizes_have_a_step_of_shapes(name):
    """Nothing is allocated or compiled: the abstract step of the real configurations traces."""
    config = load_config(ROOT / "configs" / f"{name}.py", ["batch_size=8"])
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    step, state, batch = abstract_step(config, config.task, mesh)
    after, metrics = jax.eval_shape(step, state, batch)
    assert metrics["loss"].shape == ()
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert batch.shared["token_ids"].shape == (171, 1, 77)
    assert not any(path.startswith("sam/") for path in state.trainable)
    sharded = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    assert len(sharded) > 20


def test_collectives_are_counted():
    program = """
      %a = bf16[4,128]{1,0} all-gather(%x), dimensions={0}
      %b = (f32[10]{0}, f32[2,3]{1,0}) all-reduce(%y, %z), to_apply=%sum
      %c = f32[8]{0} all-reduce-start(%y)
      %d = f32[8]{0} add(%all-reduce.1, %y)
    """
    assert collective_bytes(program) == {"all-gather": 1024, "all-reduce": 4 * (10 + 6 + 8)}


def test_mfu_fit_and_choice():
    assert RESULT.mfu == pytest.approx(4e14 / (0.5 * 16 * 197e12))
    large = replace(RESULT, memory=17 * 2**30, batch_size=640)
    slow = replace(RESULT, estimated_s=2.0)
    assert _best([large, slow, RESULT]) is RESULT
    assert _best([large]) is None
    assert "| v5e:4x4 | 16 | 16 x 1 | 64 | 3.00 (16) | 400.00 | 0.5000 | 25.4% | none |" in _table(
        [RESULT]
    )


def test_bad_input():
    assert _parse_grid("1,4x32,64") == [(1, 32), (1, 64), (4, 32), (4, 64)]
    with pytest.raises(SammiError, match="--grid 1,4"):
        _parse_grid("1,4")
    for name in ("v9:2x2", "v5e", "v5e:axb"):
        with pytest.raises(SammiError, match="not a topology"):
            describe_topology(name)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_compiles_for_a_small_pod():
    command = [sys.executable, "-m", "sammi_jax", "compile", "--config",
               ROOT / "configs/openshapes_catseg.py", "--topology", "v5e:2x4",
               "--set", "batch_size=8", "--set", "compute_dtype=bfloat16"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| v5e:2x4 | 8 | 8 x 1 | 8 |" in done.stdout
