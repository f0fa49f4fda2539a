"""``sammi compile``: the training step compiled for a TPU topology, on any machine."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sammi_jax.cli.options import add_config_arguments
from sammi_jax.errors import SammiError

if TYPE_CHECKING:
    from sammi_jax.pods.aot import Compiled

_GIB = 2**30
_DESCRIPTION = """\
Compile the training step of a configuration for a TPU topology, with libtpu (pip install
'sammi_jax[tpu]') on this machine's CPU. Reports the memory a chip, FLOPs, collectives, and an
estimate of the step's time by part; docs/pods.md explains the numbers. Weights, data and a TPU are
not needed. The batch size is that of all chips together, the topology that of each slice."""
_EPILOG = """\
example:
  sammi compile --config sammi_vitb16 --topology v5e:4x4 --grid 1,4x32,64
  sammi compile --config sammi_vitb16 --topology v5e:16x16 --set mesh.slices=2 \\
    --set batch_size=512"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a training step for a TPU topology that you don't have",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="such as v5e:4x4 or v5p:2x2x4"
    )
    parser.add_argument(
        "--grid",
        metavar="FSDP,..xBATCH,..",
        help="compile all combinations of these mesh.fsdp and batch sizes, such as 1,4x32,64, and "
        "name the fastest that fits",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile every combination and print a table."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or the TPU plug-in looks for a TPU first
    from dataclasses import replace

    from sammi_jax.config.files import load_config
    from sammi_jax.pods.aot import compile_step

    config = load_config(args.config, args.set)
    shapes = [(config.mesh.fsdp, config.batch_size)]
    if args.grid:
        shapes = _parse_grid(args.grid)
    results = []
    for fsdp, batch_size in shapes:
        tried = replace(config, batch_size=batch_size, mesh=replace(config.mesh, fsdp=fsdp))
        results.append(compile_step(tried, args.topology))
        print(f"compiled fsdp {fsdp}, batch {batch_size} in {results[-1].compile_s:.0f} s")
    print(_table(results))
    best = _best(results)
    if best is None:
        print("No combination fits the memory of a chip: raise fsdp, set task.remat=full, or lower "
              "the batch size.")  # fmt: skip
        return 1
    if len(results) > 1:
        print(f"Fastest that fits: mesh.fsdp={best.mesh[1]} batch_size={best.batch_size}")
    print(_details(best))
    return 0


def _parse_grid(text: str) -> list[tuple[int, int]]:
    try:
        fsdp, batches = ([int(n) for n in part.split(",")] for part in text.split("x"))
    except ValueError:
        raise SammiError(
            f"--grid {text}: write sizes of mesh.fsdp, an x, and batch sizes: 1,4x32,64"
        ) from None
    return [(f, b) for f in fsdp for b in batches]


def _best(results: Sequence["Compiled"]) -> "Compiled | None":
    """The one with the most images a second by estimate, of those that fit."""
    fitting = [result for result in results if result.fits]
    rate = lambda r: r.batch_size / r.estimated_s if r.estimated_s else 0.0  # noqa: E731
    return max(fitting, key=rate, default=None)


def _table(results: Sequence["Compiled"]) -> str:
    lines = [
        "| topology | chips | data x fsdp | batch | GiB a chip (of) | TFLOP a step | "
        "arithmetic + collectives = step, ms | of these custom calls, ms | MFU | "
        "sent, MiB a chip |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        size = f"{r.memory / _GIB:.2f} ({r.chip.hbm / _GIB:.0f})"
        time, kernels, mfu, sent = "does not fit", "-", "-", "-"
        if r.cost is not None and r.estimated_s and r.mfu is not None:
            time = " = ".join(
                (f"{1e3 * r.compute_s:.1f} + {1e3 * r.link_s:.1f}", f"{1e3 * r.estimated_s:.1f}")
            )
            kernels = f"{1e3 * sum(r.kernels_s.values()):.1f}"
            mfu = f"{100 * r.mfu:.1f}%"
            sent = _sent(r.cost.sent)
            if r.slices > 1:
                sent = f"ICI: {sent}; DCN: {_sent(r.cost.sent_dcn)}"
        pod = f"{r.slices} x {r.topology}" if r.slices > 1 else r.topology
        lines.append(
            f"| {pod} | {r.chips} | {r.mesh[0]} x {r.mesh[1]} | {r.batch_size} | {size} | "
            f"{r.model_flops / 1e12:.2f} | {time} | {kernels} | {mfu} | "
            f"{sent} |"
        )
    return "\n".join(lines)


def _sent(count: Counter[str]) -> str:
    """Bytes of each kind of collective, in MiB."""
    return ", ".join(f"{kind} {n / 2**20:.1f}" for kind, n in count.most_common()) or "none"


def _details(result: "Compiled") -> str:
    """Parameters, the optimizer's memory, and the estimated time of each part."""
    lines = [
        f"Parameters: {result.trainable:,} train, {result.frozen:,} are frozen. "
        f"Optimizer state: {result.optimizer / 2**20:.1f} MiB a chip.",
        f"Estimated arithmetic of {result.topology}, fsdp {result.mesh[1]}, "
        f"batch {result.batch_size}, by part:",
    ]
    if result.slices > 1:
        lines.insert(
            1,
            f"Collectives: {1e3 * result.ici_s:.1f} ms inside the slices (ICI), "
            f"{1e3 * result.dcn_s:.1f} ms between them (DCN).",
        )
    lines.append(
        f"  {'part':24s}{'ms':>10s}{'share':>7s}{'custom calls, ms':>18s}{'matrix units':>14s}"
    )
    for part, seconds in result.parts_s.items():
        share, kernels = seconds / result.compute_s, result.kernels_s.get(part, 0.0)
        lines.append(
            f"  {part:24s}{1e3 * seconds:10.2f}{100 * share:6.1f}%{1e3 * kernels:18.2f}"
            f"{100 * result.matrix_share.get(part, 0.0):13.1f}%"
        )
    cost = result.cost
    if cost is not None and cost.unknown_loops:
        lines.append(f"  {cost.unknown_loops} loops of unknown length counted as one iteration")
    if cost is not None and cost.unknown_kernels:
        lines.append(
            f"  {cost.unknown_kernels} custom calls without known bundles: only their reads and "
            "writes are counted"
        )
    return "\n".join(lines)
