"""Compilation time and memory of `segment` at the real sizes, weights drawn at random.

Each row is a process of its own, started twice with one compilation cache: the first compiles, the
second reads the cache. Seconds are those that JAX reports for compiling, or for reading the cache,
and, apart, for tracing and lowering. "Compiler" is XLA's own count: weights, and the larger of the
network and the read-out, which follow each other. "Process" is the most that the process ever held:
Python, compiling, two copies of the weights while they are read.

Run: ``python benchmarks/inference_memory.py`` (CPU, half an hour) or, for one row,
``python benchmarks/inference_memory.py --only vitl14_336 847``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace

SIZE = (480, 640)
ROWS = (("vitb16", 150), ("vitb16", 847), ("vitl14_336", 150), ("vitl14_336", 847))
SAM = {"vitb16": "vitb", "vitl14_336": "vith"}


def measure(size: str, num_classes: int) -> dict[str, float]:
    """In this process."""
    import jax
    import numpy as np

    from sammi_jax.config.model import SAM_SIZES, SEGMENTER_SIZES, MaskConfig
    from sammi_jax.inference.segmenter import Segmenter
    from sammi_jax.weights.kinds import expected_params

    masks = MaskConfig(sam=SAM_SIZES[SAM[size]])
    config = replace(SEGMENTER_SIZES[size], masks=masks)
    found: dict[str, list[float]] = {"compile": [], "lower": []}

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            found["compile" if "backend" in event else "lower"].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rng = np.random.default_rng(0)
    params = {
        path: 0.02 * rng.standard_normal(want.shape, np.float32)
        for path, want in expected_params(config).items()
    }
    model = Segmenter(config, params, lambda: sys.exit("no text is read"))
    del params
    width = (num_classes, config.clip.embed_dim)
    texts = rng.standard_normal(width, np.float32)
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    names = [f"class {i}" for i in range(num_classes)]
    model.segment(image, names, text_embeddings=texts, keep_scores=False)
    seconds = {name: sum(parts) for name, parts in found.items()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parts = model.memory(num_classes, SIZE)
    program = max(parts["network"], parts["readout"])
    return {
        **seconds,
        "weights": parts["weights"] / 2**30,
        "network": parts["network"] / 2**30,
        "readout": parts["readout"] / 2**30,
        "sum": (parts["weights"] + program + parts["result"]) / 2**30,
        "process": peak,
    }


def row(size: str, num_classes: int) -> str:
    """Two processes with one cache."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--inside", size, str(num_classes)]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        found = [
            json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)
            for _ in range(2)
        ]
    cold, warm = (each["compile"] for each in found)
    lower = found[0]["lower"]
    parts = " | ".join(f"{found[0][key]:.2f}" for key in ("weights", "network", "readout", "sum"))
    held = " | ".join(f"{each['process']:.2f}" for each in found)
    return f"| {size} | {num_classes} | {cold:.0f} | {warm:.1f} | {lower:.1f} | {parts} | {held} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs=2, metavar=("SIZE", "T"), help="one row")
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure(options.inside[0], int(options.inside[1]))))
        return
    titles = ["CLIP", "T", "compile, s", "from the cache, s", "trace and lower, s"]
    titles += ["weights, GiB", "network", "read-out", "compiler: sum"]
    titles += ["process, compiling", "process, cached"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    rows = [options.only] if options.only else ROWS
    for size, count in rows:
        print(row(size, int(count)), flush=True)


if __name__ == "__main__":
    main()
