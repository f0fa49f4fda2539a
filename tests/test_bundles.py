"""Issue cycles read from bundles, in the form in which libtpu 0.0.42 writes them (cut)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sammi_jax.pods.bundles import Bundles, issue_cycles

ROOT = Path(__file__).resolve().parent.parent
LIBTPU = Path(sys.prefix) / "tpu"
NESTED = """\
= control target key start
LB: loop body
= control target key end

     0   :  { %6 = vsyncpa [#allocation3], 0 /* window allocation
window_bounds: (128, 1)
hlo: kernel.5
 */ }
   0x1   :  { %s746_s6 = smov 0 /* copy for cssa */ }
   0x2 LB: > { %s439_s10 = sadd.s32 4294967295, %s728_s9  ;;  %s766_s11 = sadd.s32 1, %s728_s9 }
   0x3   : > { %108 = sbr.rel (%p105_p5) target = $region24 }
   0x4   :  {}
   0x5   :  {} /* End region 22 */
   0x6 LB: >> { %s146_s24 = sadd.s32 2, %s840_s10 }
   0x7   : >> { %p143_p7 = scmp.ge.s32.totalorder %s146_s24, 8 /* loop exit test */ }
   0x8   : >> { %145 = sbr.rel (!%p143_p7) target = $region73 }
   0x9   :  {}
   0xa   : >> { %582 = vst [vmem:[%s346_s26 + $0x38] sm:$0xff] }
   0xb LB: >> { %v1 = vld [vmem:[%s1]] }
   0xc PF: > { %p11_p8 = scmp.ge.s32.totalorder %s766_s11, 10 /* loop exit test */ }
   0xd   : > { %13 = sbr.rel (!%p11_p8) target = $region84 }
   0xe   :  {}
   0xf   :  { %385 = vsyncpa [#allocation3], 1 } /* exit bundle: %kernel.5 */
"""


def test_bundles_in_loops_are_multiplied_out():
    """The inner loop counts 0, 2, 4, 6; the one after it has no bound; an empty bundle no depth."""
    inner, without_bound, outer, outside = 5 * 4, 1, 4 + 2 + 1, 2 + 1
    assert issue_cycles(NESTED) == (inner + without_bound + outer) * 10 + outside


def test_bundles_are_found_by_the_name_of_the_instruction():
    bundles = Bundles()
    folder = Path(os.environ["LIBTPU_INIT_ARGS"].split("--xla_jf_dump_to=")[1].split()[0])
    (folder / "17959-kernel.5-01-final_bundles.txt").write_text(NESTED)
    (folder / "17959-kernel.5-00-schedule-analysis_final_bundles.txt").write_text("")
    assert bundles.cycles("kernel.5") == issue_cycles(NESTED)
    assert bundles.cycles("kernel") is None
    assert Bundles().cycles("kernel.5") is None, "what an earlier compilation left"


@pytest.mark.slow
def test_a_kernel_compiled_for_a_chip_that_is_not_here():
    """Attention, which libtpu turns into a custom call: nearly all of its time is there."""
    script = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from sammi_jax.pods.aot import describe_topology
from sammi_jax.pods.bundles import Bundles
from sammi_jax.pods.hlo import program_cost
bundles = Bundles()
place = SingleDeviceSharding(describe_topology("v5e:2x2")[0])
def attention(q, k, v):
    scores = jnp.einsum("hqd,hkd->hqk", q, k, preferred_element_type=jnp.float32)
    return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(scores).astype(v.dtype), v)
x = jax.ShapeDtypeStruct((16, 4096, 80), jnp.bfloat16, sharding=place)
text = jax.jit(attention).lower(x, x, x).compile().as_text()
cost = program_cost(text, (), bundles.cycles, 819 / 1.5)
print(cost.kernels.total() / 1.5e6, cost.cycles.total() / 1.5e6, cost.unknown_kernels)
"""
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBTPU}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kernels, rest, unknown = map(float, done.stdout.split())
    # The products alone take 0.22 ms on 80 channels, 0.35 on the 128 that these fill.
    assert 0.35 < kernels < 3
    assert 0 < rest < kernels
    assert unknown == 0
