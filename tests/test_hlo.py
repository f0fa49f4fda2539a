"""Costs read from HLO text, with snippets as libtpu 0.0.42 writes them (attributes cut)."""

from dataclasses import replace

import pytest

from sammi_jax.pods.hlo import program_cost

CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
PROGRAM = f"""
HloModule jit_step, is_scheduled=true, num_partitions=8

%fused.1 (p: bf16[8,128]) -> bf16[8,128] {{
  %p = bf16[8,128]{{1,0:T(8,128)(2,1)}} parameter(0)
  ROOT %max = bf16[8,128]{{1,0:T(8,128)(2,1)}} maximum(%p, %p), {CYCLES % 999}
}}

%inner.body (c: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {{
  %c = (s32[]{{:T(128)}}, bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}}) parameter(0)
  %x = bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}} get-tuple-element(%c), index=1
  %named = bf16[8,128]{{1,0}} fusion(%x), kind=kLoop, calls=%fused.1, metadata={{op_name="jit(step)/transpose(jvp(tower))/while/body/dot_general"}}, {CYCLES % 5}
  %plain = bf16[8,128]{{1,0}} copy(%named), {CYCLES % 7}
  ROOT %out = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) tuple(%i, %plain)
}}

%inner.condition (c: (s32[], bf16[8,128])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(4)
  %c = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %bound), direction=LT
}}

%outer.body (c: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {{
  %t = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) parameter(0)
  %w = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) while(%t), condition=%inner.condition, body=%inner.body, metadata={{op_name="jit(step)/jvp(tower)/while/body/while"}}
  %gathered = bf16[8,1024]{{1,0}} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={{1}}
  ROOT %out = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) tuple(%i, %y)
}}

%outer.condition (c: (s32[], bf16[8,128])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(3)
  ROOT %lt = pred[]{{:T(512)}} compare(%i, %bound), direction=LT
}}

%until (c: (s32[], bf16[8,128])) -> pred[] {{
  ROOT %gt = pred[]{{:T(512)}} compare(%a, %b), direction=GT
}}

ENTRY %main.1_spmd (param: bf16[8,128]) -> bf16[8,128] {{
  %param = bf16[8,128]{{1,0}} parameter(0), sharding={{replicated}}, metadata={{op_name="x"}}
  %copy-start = (bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}}, bf16[8,128]{{1,0}}, u32[]{{:S(2)}}) copy-start(%param)
  %copy-done = bf16[8,128]{{1,0:T(8,128)(2,1)S(1)}} copy-done(%copy-start)
  %w.1 = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) while(%t), condition=%outer.condition, body=%outer.body, metadata={{op_name="jit(step)/jvp(tower)/while"}}
  %w.2 = (s32[]{{:T(128)}}, bf16[8,128]{{1,0}}) while(%t), condition=%until, body=%inner.body
  ROOT %all-reduce = (f32[10]{{0}}, f32[2,3]{{1,0}}) all-reduce(%y, %z), replica_groups=mesh['axis_0'=2,'axis_1'=4] {{'axis_0','axis_1'}}, to_apply=%sum
}}
"""  # noqa: E501


def test_loops_are_multiplied_out():
    cost = program_cost(PROGRAM, ["tower"])
    # The unnamed copy belongs to the loop around it: 12 times to the tower, once to nothing.
    assert cost.cycles == {"tower backward": 13 * 5, "tower": 12 * 7, "other": 7}
    assert cost.unknown_loops == 1
    assert cost.copied == 8 * 128 * 2


def test_collectives_send_what_a_ring_sends():
    gathered, reduced = 3 * (8 * 1024 * 2) * 3 // 4, 2 * (4 * 16) * 7 // 8
    assert program_cost(PROGRAM).sent == {"all-gather": gathered, "all-reduce": reduced}


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("f32[6]{0} reduce-scatter(%x), replica_groups={{0,1,2},{3,4,5}}", 24 * 2),
        ("f32[6]{0} collective-permute(%x), source_target_pairs={{0,1}}", 24),
        ("f32[6]{0} all-to-all(%x), replica_groups={}", 21),
        ("f32[6]{0} all-reduce(%x), replica_groups=mesh['a'=8] {'a':(2)4}", 36),
        ("f32[6]{0} fusion(%x), kind=kCustom, calls=%hidden", 24),
        ("f32[6]{0} fusion(%x), calls=%hidden\n  %b = f32[6]{0} fusion(%x), calls=%hidden", 24),
        ("f32[6]{0} all-gather-done(%start)", 12),
    ],
)
def test_groups_and_asynchronous_forms(line, sent):
    text = f"""
HloModule jit_f, num_partitions=8

%hidden (p: f32[6]) -> f32[6] {{
  ROOT %moved = f32[6]{{0}} collective-permute(%p), channel_id=7, source_target_pairs={{{{0,1}}}}
}}

ENTRY %main (x: f32[6]) -> f32[6] {{
  %start = (f32[3]{{0}}, f32[6]{{0}}) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={{0}}
  ROOT %result = {line}
}}
"""  # noqa: E501
    assert program_cost(text).sent.total() == sent


def test_the_dearest_branch_counts():
    text = f"""
%cheap (p: f32[]) -> f32[] {{
  ROOT %a = f32[] copy(%p), {CYCLES % 1}
}}

%dear (p: f32[]) -> f32[] {{
  ROOT %b = f32[] copy(%p), {CYCLES % 10}
}}

ENTRY %main (x: f32[]) -> f32[] {{
  ROOT %c = f32[] conditional(%i, %x, %x), branch_computations={{%cheap, %dear}}
}}
"""
    assert program_cost(text).cycles.total() == 10


def test_between_slices():
    """libtpu gives a chip's part to its MegaScale runtime: here 512 KiB, three times."""
    send = (
        "send(%x, %after), is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_"
        'name="xla_megascale_runtime",_xla_megascale_target="{SLICES}x{0:15}",'
        '_xla_megascale_transfer_type="KIND"}'
    )
    text = PROGRAM.replace(
        "  %gathered =",
        f"  %send = (f32[128,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) {send}\n  %gathered =",
    )
    for kind, slices, expected in (
        ("ALL_REDUCE", "1,2", 2**19),
        ("ALL_REDUCE", "1,2,3,4", 2**19 * 3 // 2),
        ("ALL_GATHER", "1,2,3,4", 2**19 * 3),
    ):
        cost = program_cost(text.replace("SLICES", slices).replace("KIND", kind))
        assert cost.sent_dcn == {kind.lower().replace("_", "-"): 3 * expected}
        assert cost == replace(program_cost(PROGRAM), sent_dcn=cost.sent_dcn)
    plain = text.replace("xla_megascale_runtime", "another")
    assert program_cost(plain).sent_dcn == {}


def test_kernels_cost_their_bundles_or_their_memory():
    """Equal kernels have the bundles of one; arrays in VMEM, S(1), and results count as placed."""
    call = (
        '%{} custom-call(%x, %y), custom_call_target="tpu_custom_call", '
        'metadata={{op_name="jit(f)/jvp(tower)/pallas_call"}}, backend_config={{"body":"{}"}}'
    )
    far = "bf16[16,80]{1,0:T(8,128)(2,1)}"  # 16 x 128 x 2 bytes
    near = "bf16[16,80]{1,0:T(8,128)(2,1)S(1)}"
    text = f"""
ENTRY %main (x: bf16[16,80], y: f32[3]) -> bf16[16,80] {{
  %x = {far} parameter(0)
  %y = f32[3]{{0:T(128)}} parameter(1)
  {call.format(f"a = {near}", "A")}
  {call.format(f"b = {far}", "A")}
  {call.format(f"c = {far}", "C")}
  ROOT %d = {far} custom-call(%c), custom_call_target="Sharding"
}}
"""
    cost = program_cost(text, ["tower"], {"a": 1000}.get, 2.0)
    read, write = 16 * 128 * 2 + 128 * 4, 16 * 128 * 2
    assert cost.kernels == {"tower": (read // 2) + 2 * (read + write) // 2}
    assert cost.unknown_kernels == 1
    assert program_cost(text, ["tower"], {"a": 10_000}.get, 2.0).kernels["tower"] == (
        2 * 10_000 + (read + write) // 2
    )
    assert program_cost(text).kernels.total() == 0
