r"""Two minutes on a GPU: are the results right, and how fast is it? One table, to be sent in.

    python launch/gpu_check.py                       # writes gpu_check.md
    python launch/gpu_check.py --set batch_size=8    # more images a step, over all GPUs

Parity: loss and gradient of the small SAM-MI that comes with the package, on the first device
against this machine's CPU in float32. Speed: the training step of a real size (``--config``) with
random weights and images, on all devices of this process. It needs no data and no weights. The exit
code is 1 where the results are not those of the CPU.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.files import load_config
from sammi_jax.doctor.system import environment, versions
from sammi_jax.errors import SammiError
from sammi_jax.files import write_atomic
from sammi_jax.layers.init import Keys
from sammi_jax.parallel.batch import Batch, check_batch_size, put_batch
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.pods.aot import abstract_step
from sammi_jax.training.flops import count_flops, peak_flops
from sammi_jax.training.metrics_log import peak_memory
from sammi_jax.training.optim import make_optimizer
from sammi_jax.training.state import make_loss, new_state, trainable_paths
from sammi_jax.training.tasks import make_task
from sammi_jax.training.tasks.segment import SegmentRules
from sammi_jax.weights.bundled import DEFAULT
from sammi_jax.weights.params import flat_params

# (name, compute_dtype, precision of products, largest relative error of loss and of gradient).
# float32 with exact products differs by the order of sums alone. The others are limits of what is
# still the same computation: TF32 has 10 bits of mantissa, bfloat16 has 7.
PARITY = (
    ("float32, exact products", "float32", "highest", 1e-5, 1e-3),
    ("float32, default products", "float32", "default", 5e-3, 5e-2),
    ("bfloat16", "bfloat16", "default", 2e-2, 1e-1),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="sammi_vitb16", help="of the step that is timed")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.md"))
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.set)
        if not isinstance(config.task, SegmentConfig):
            raise SammiError(f"--config {options.config}: give a segmentation experiment")
        right, rows = parity()
        rows = [*system(), *rows, *speed(config, config.task, options.steps)]
    except SammiError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 1
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
    write_atomic(options.out, f"{table}\n")
    print(f"{table}\nwritten to {options.out}")
    return 0 if right else 1


Rows = list[tuple[str, str]]


def system() -> Rows:
    """Devices, versions, and the variables that matter."""
    found, kinds = versions(), sorted({d.device_kind for d in jax.local_devices()})
    names = ("jax", "jaxlib", *(n for n in found["packages"] if n.startswith("jax_cuda")))
    packages = [f"{name} {found['packages'][name]}" for name in names]
    variables = [f"`{name}={value}`" for name, value in environment(os.environ).items()]
    return [
        ("devices", f"{jax.local_device_count()} x {', '.join(kinds)}"),
        ("versions", f"{', '.join(packages)}, Python {found['python']}, {found['system']}"),
        ("environment", " ".join(variables) or "nothing set"),
    ]


def parity() -> tuple[bool, Rows]:
    """Whether all errors are within their limits, and a row for each kind of arithmetic."""
    config = load_config("openshapes_sammi", [f"task.segmenter={DEFAULT}", "batch_size=2"])
    task = make_task(config)
    params, batch = task.initial_params(0), task.batch(0)
    trainable = trainable_paths(task)

    def on(device: Any, dtype: str, precision: str) -> tuple[float, np.ndarray]:
        """The loss and all gradients."""
        loss = make_loss(task, dtype)
        inputs = jax.device_put((params, batch), device)

        def of(chosen: Any, inputs: Any) -> Any:
            return loss({**inputs[0], **chosen}, inputs[1], jax.random.key(0))[0]

        with jax.default_device(device), jax.default_matmul_precision(precision):
            chosen = {path: inputs[0][path] for path in trainable}
            value, grads = jax.jit(jax.value_and_grad(of))(chosen, inputs)
        return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])

    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise SammiError("JAX has no CPU to compare with: unset JAX_PLATFORMS") from error
    expected, rows, right = on(cpu, "float32", "highest"), [], True
    for name, dtype, precision, loss_limit, grad_limit in PARITY:
        value, grads = on(jax.local_devices()[0], dtype, precision)
        apart = abs(value - expected[0]) / abs(expected[0])
        grads_apart = float(np.linalg.norm(grads - expected[1]) / np.linalg.norm(expected[1]))
        fits = apart <= loss_limit and grads_apart <= grad_limit
        right = right and fits
        verdict = "" if fits else f" **above {loss_limit:g} and {grad_limit:g}**"
        rows.append(
            (
                f"parity with the CPU, {name}: relative error",
                f"loss {apart:.1e}, gradient {grads_apart:.1e}{verdict}",
            )
        )
    return right, rows


def speed(config: TrainConfig, task: SegmentConfig, steps: int) -> Rows:
    """Compilation, time, MFU and memory of the training step."""
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    step, _, shapes = abstract_step(config, task, mesh)
    plain = abstract_step(config, replace(task, remat="none"), mesh)
    batch = put_batch(_random_batch(shapes, task), mesh)
    rules = SegmentRules(task, 255, photographs=False)
    scales = {path: rules.lr_scale(path) for path in trainable_paths(rules)}
    optimizer = make_optimizer(config.optim, config.steps, scales)
    with jax.set_mesh(mesh):
        state = new_state(flat_params(rules.make(Keys(0))), scales, optimizer, mesh)
        compiled, compile_s = _timed(
            lambda: jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        )
        (state, metrics), _ = _timed(lambda: compiled(state, batch))  # it also loads the program
        seconds = []
        for _ in range(steps):
            (state, metrics), took = _timed(lambda s=state: compiled(s, batch))
            seconds.append(took)
    step_s = float(np.median(seconds))
    flops, peak = count_flops(*plain), peak_flops()
    mfu = "not known: no published peak"
    if peak is not None:
        mfu = f"{flops / (step_s * peak * mesh.size):.1%}"
    rate = config.batch_size / step_s
    return [
        ("step", f"{config.batch_size} images, {config.compute_dtype}, mesh {dict(mesh.shape)}"),
        ("compilation, s", f"{compile_s:.1f}"),
        ("time a step, s", f"{step_s:.3f} (lowest {min(seconds):.3f}, of {steps})"),
        ("images/s", f"{rate:.3g}"),
        ("TFLOP a step", f"{flops / 1e12:.3g}"),
        ("MFU", mfu),
        ("peak memory, GB", f"{peak_memory() / 1e9:.2f}"),
        ("loss", f"{float(metrics['loss']):.4g}"),
    ]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, once that is computed, and how long it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - began


def _random_batch(shapes: Batch, task: SegmentConfig) -> Batch:
    """Arrays of these shapes: images, labels, tokens (and embeddings of a cached SAM)."""
    rng = np.random.default_rng(0)
    tokens = shapes.shared["token_ids"]
    examples = {
        "images": lambda shape: rng.integers(0, 256, shape, np.uint8),
        "labels": lambda shape: rng.integers(0, tokens.shape[0], shape, np.int32),
    }
    other = lambda shape: rng.normal(size=shape).astype(np.float16)  # noqa: E731
    return Batch(
        {name: examples.get(name, other)(x.shape) for name, x in shapes.examples.items()},
        {"token_ids": rng.integers(1, task.model.clip.text.vocab_size, tokens.shape, np.int32)},
    )


if __name__ == "__main__":
    sys.exit(main())
