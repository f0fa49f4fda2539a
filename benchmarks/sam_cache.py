"""Training steps with and without a cache of SAM's embeddings, and what the rows' type costs.

Forward, backward and update of a configuration's real step, on random weights, images and rows:
times do not depend on the values. Both programs are compiled first; then their steps alternate,
and medians are printed. FLOPs are counted from the trace (`sammi_jax.training.flops`).

Command:   python benchmarks/sam_cache.py [--runs 30]
           python benchmarks/sam_cache.py --config sammi_vitb16 --runs 0 \
               --set batch_size=4 --set data.augment=none --set task.remat=none
Hardware:  two CPU cores; compiling the two programs is most of it. --runs 0 compiles nothing.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.files import load_config
from sammi_jax.parallel.batch import Batch, put_batch
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.pods.aot import abstract_step
from sammi_jax.training.embed import make_encoder
from sammi_jax.training.flops import count_flops
from sammi_jax.training.state import TrainState
from sammi_jax.training.tasks.segment import SegmentRules
from sammi_jax.training.tasks.segment_data import ENCODER
from sammi_jax.weights.params import flat_params

NO_CLASS = 255  # the ignored label, which `make_batch` does not use


def make_batch(shapes: Batch, vocab_size: int) -> Batch:
    """Random images, labels, tokens and rows of the given shapes."""
    rng = np.random.default_rng(0)
    num_classes = shapes.shared["token_ids"].shape[0]
    draw = {
        "images": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "labels": lambda shape: rng.integers(0, num_classes, shape, np.int32),
        "token_ids": lambda shape: rng.integers(1, vocab_size, shape, np.int32),
        "sam_embeddings": lambda shape: rng.normal(size=shape).astype(np.float16),
    }
    fill = lambda arrays: {name: draw[name](x.shape) for name, x in arrays.items()}  # noqa: E731
    return Batch(fill(shapes.examples), fill(shapes.shared))


def make_run(
    config: TrainConfig, task: SegmentConfig, params: dict[str, Any]
) -> Callable[[], float]:
    """``() -> seconds`` of one step, compiled."""
    mesh = make_mesh(config.mesh)
    step, shapes, batch_shapes = abstract_step(config, task, mesh)
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)  # noqa: E731
    take = lambda part: {path: jnp.array(params[path]) for path in part}  # noqa: E731
    state = TrainState(
        zeros(shapes.step),
        take(shapes.trainable),
        take(shapes.frozen),
        jax.tree.map(zeros, shapes.opt_state),
    )
    batch = put_batch(make_batch(batch_shapes, task.model.clip.text.vocab_size), mesh)
    program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    return run


def rounding(config: TrainConfig, task: SegmentConfig, params: dict[str, Any]) -> str:
    """Relative L2 error of embeddings that are stored in 16 bits, on random images."""
    assert task.model.masks is not None
    encoder = {p.removeprefix(ENCODER): v for p, v in params.items() if p.startswith(ENCODER)}
    encode = make_encoder(task.model.masks.sam, encoder, "float32", make_mesh(config.mesh))
    shape = (config.batch_size, task.model.crop_size, task.model.crop_size, 3)
    exact = encode(np.random.default_rng(1).integers(0, 256, shape, np.uint8)).astype(np.float64)
    error = lambda dtype: (  # noqa: E731
        np.linalg.norm(exact.astype(dtype).astype(np.float64) - exact) / np.linalg.norm(exact)
    )
    return (
        f"relative L2 error of stored embeddings: float16 {error(np.float16):.1e}, "
        f"bfloat16 {error(ml_dtypes.bfloat16):.1e}; largest value {np.abs(exact).max():.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="openshapes_sammi")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--runs", type=int, default=30, help="steps of each kind; 0: FLOPs only")
    options = parser.parse_args()
    config = load_config(options.config, options.set)
    task = config.task
    if not isinstance(task, SegmentConfig) or task.model.masks is None:
        parser.error("a configuration of SAM-MI is needed")
    tasks = {"without": task, "with": replace(task, sam_cache="not read")}
    mesh = make_mesh(config.mesh)
    flops = {name: count_flops(*abstract_step(config, t, mesh)) for name, t in tasks.items()}
    each = ", ".join(f"{value / 1e9:,.1f} {name}" for name, value in flops.items())
    print(f"GFLOP a step: {each}; ratio {flops['without'] / flops['with']:.2f}", flush=True)
    if not options.runs:
        return
    rules = SegmentRules(task, NO_CLASS, photographs=False)
    params = {p: np.asarray(v) for p, v in flat_params(rules.make(nnx.Rngs(0))).items()}
    print(rounding(config, task, params), flush=True)
    runs = {name: make_run(config, each, params) for name, each in tasks.items()}
    load = os.getloadavg()[0]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.runs + 1):
        for name, run in runs.items():
            seconds = run()
            if number:  # the first of each is a warm-up
                times[name].append(seconds)
    print_table(times)
    print(
        f"\n{options.config}, batch {config.batch_size}, {config.compute_dtype}; {os.cpu_count()} "
        f"CPUs; load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )


def print_table(times: dict[str, list[float]]) -> None:
    print("| cache | s a step (median) | lowest to highest |")
    print("|---|---|---|")
    for name, found in times.items():
        span = f"{min(found):.3f} to {max(found):.3f}"
        print(f"| {name} | {statistics.median(found):.3f} | {span} |")
    pairs = [a / b for a, b in zip(times["without"], times["with"], strict=True)]
    medians = statistics.median(times["without"]) / statistics.median(times["with"])
    print(
        f"\nwithout / with: {medians:.2f} of the medians; pair by pair "
        f"{statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
    )


if __name__ == "__main__":
    main()
