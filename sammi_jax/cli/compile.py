"""`sammi compile`: the training step compiled for a TPU pod, on any machine."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sammi_jax.cli.options import add_config_arguments
from sammi_jax.errors import SammiError

if TYPE_CHECKING:
    from sammi_jax.aot import Compiled

_GIB = 2**30


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a training step for a TPU pod that is not here",
        description="Compile the training step of a configuration for a TPU topology with libtpu "
        "(pip install 'sammi_jax[tpu]') on this machine's CPU, and report memory a chip, FLOPs, "
        "collectives and XLA's estimated step time. No weights, data or TPU are needed. The batch "
        "size is over all chips.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:SHAPE", help="for example v5e:4x4, v5p:2x2x4"
    )
    parser.add_argument(
        "--grid",
        metavar="FSDP,..xBATCH,..",
        help="several sizes of the fsdp axis and several batch sizes, as in 1,4x32,64; the "
        "fastest combination that fits is named",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile every combination and print a table."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # or the TPU plug-in looks for a TPU first
    from dataclasses import replace

    from sammi_jax.aot import compile_step
    from sammi_jax.experiment import load_config

    config = load_config(args.config, args.set)
    shapes = [(config.mesh.fsdp, config.batch_size)]
    if args.grid:
        shapes = _parse_grid(args.grid)
    results = []
    for fsdp, batch_size in shapes:
        mesh = replace(config.mesh, fsdp=fsdp)
        results.append(compile_step(replace(config, batch_size=batch_size), args.topology, mesh))
        print(f"compiled fsdp {fsdp}, batch {batch_size} in {results[-1].compile_s:.0f} s")
    print(_table(results))
    best = _best(results)
    if best is None:
        print("No combination fits the memory of a chip: raise fsdp, set task.remat=true, or lower "
              "the batch size.")  # fmt: skip
    elif len(results) > 1:
        print(f"Fastest that fits: mesh.fsdp={best.mesh[1]} batch_size={best.batch_size}")
    return 0 if best else 1


def _parse_grid(text: str) -> list[tuple[int, int]]:
    try:
        fsdp, batches = ([int(n) for n in part.split(",")] for part in text.split("x"))
    except ValueError:
        raise SammiError(
            f"--grid {text}: write it as 1,4x32,64: fsdp sizes x batch sizes"
        ) from None
    return [(f, b) for f in fsdp for b in batches]


def _best(results: Sequence["Compiled"]) -> "Compiled | None":
    """Most images a second by the compiler's estimate, of those that fit."""
    fitting = [result for result in results if result.fits]
    rate = lambda r: r.batch_size / r.estimated_s if r.estimated_s else 0.0  # noqa: E731
    return max(fitting, key=rate, default=None)


def _table(results: Sequence["Compiled"]) -> str:
    lines = [
        "| topology | chips | data x fsdp | batch | GiB a chip (of) | TFLOP a step | "
        "estimated s | MFU | collectives, MiB a chip |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        moved = ", ".join(f"{kind} {size / 2**20:.1f}" for kind, size in r.collectives.items())
        estimate = "-" if r.estimated_s is None else f"{r.estimated_s:.4f}"
        mfu = "-" if r.mfu is None else f"{100 * r.mfu:.1f}%"
        lines.append(
            f"| {r.topology} | {r.chips} | {r.mesh[0]} x {r.mesh[1]} | {r.batch_size} | "
            f"{r.memory / _GIB:.2f} ({r.hbm / _GIB:.0f}) | {r.model_flops / 1e12:.2f} | "
            f"{estimate} | {mfu} | {moved or 'none'} |"
        )
    return "\n".join(lines)
