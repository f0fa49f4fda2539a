"""One benchmark: equal weights and inputs, equal outputs, then times in turn."""

import datetime
import math
import os
import platform
import statistics
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sammi_jax import __version__
from sammi_jax.bench.cases import CASES, SIZES, config_of, random_params, torch_tensors
from sammi_jax.bench.worker import TORCH_COMMAND, Worker, read_arrays, workers, write_arrays
from sammi_jax.config.extras import installed_version
from sammi_jax.errors import SammiError
from sammi_jax.typing import NpArray
from sammi_jax.weights.kinds import expected_params

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")


def check_peers() -> None:
    """Check that what we compare with is installed.

    Raises:
        SammiError: torch is missing.
    """
    if installed_version("torch") is None:
        raise SammiError(f"sammi bench compares with PyTorch, which is missing: {TORCH_COMMAND}")


def measure(name: str, count: int, size: str, runs: int) -> dict[str, Any]:
    """Time one case on one core, ours and the peer's in turn.

    Args:
        name: a key of `CASES`.
        count: how many of the case's unit.
        size: a key of `SIZES`.
        runs: warm runs of each side.

    Returns:
        A record of JSON's types: for each side the cold time (first run), the median, lowest and
        highest warm time, and peak memory; ``ratio`` of the medians of CPU seconds (ours / peer),
        ``error`` of the outputs, FLOPs and their share of the machine's matrix rate.

    Raises:
        SammiError: the outputs differ, a side failed, or torch is missing.
    """
    check_peers()
    if count < 1:
        raise SammiError(f"{count} {CASES[name].unit}: give at least 1")
    core = _core()
    with TemporaryDirectory(prefix="sammi-bench-") as parent:
        folder = Path(parent)
        _write_inputs(folder, name, count, size)
        with workers(name, size, folder, core) as both:
            loaded = {side: worker.ask("load") for side, worker in both.items()}
            cold = {side: worker.ask("first") for side, worker in both.items()}
            error = compare_outputs(
                name, read_arrays(folder / "ours.npz"), read_arrays(folder / "peer.npz")
            )
            warm = _in_turn(both, runs)
            sides = {
                side: {
                    **_summary(warm[side]),
                    "cold_cpu_s": cold[side]["cpu_s"],
                    "cold_wall_s": cold[side]["wall_s"],
                    "loaded_mib": loaded[side],
                    "peak_mib": worker.ask("memory"),
                }
                for side, worker in both.items()
            }
            rates = {side: worker.ask("matmul_rate") for side, worker in both.items()}
            flops = both["ours"].ask("flops")
    ours = sides["ours"]["cpu_s"]
    return {
        "case": name,
        "count": count,
        "unit": CASES[name].unit,
        "size": size,
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
        "versions": {"sammi_jax": __version__, **{p: installed_version(p) for p in _PACKAGES}},
        "runs": runs,
        "sides": sides,
        "ratio": ours / sides["peer"]["cpu_s"],
        "error": error,
        "flops": flops,
        "matmul_rate": max(rates.values()),
        "matmul_rates": rates,
        "matmul_share": None if flops is None else flops / ours / max(rates.values()),
    }


def _core() -> int | None:
    """The core that both sides are pinned to; None where the system pins nothing."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(affinity(0)) if affinity else None


def _write_inputs(folder: Path, name: str, count: int, size: str) -> None:
    case, sizes = CASES[name], SIZES[size]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    write_arrays(folder / "inputs.npz", case.inputs(sizes, count, rng))
    if case.model is not None:
        config = config_of(case.model, sizes)
        params = random_params(expected_params(config), rng)
        save_file(params, folder / "ours.safetensors")
        tensors = torch_tensors(params, config)
        contiguous = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(contiguous, folder / "peer.safetensors")


def compare_outputs(name: str, ours: Mapping[str, NpArray], peer: Mapping[str, NpArray]) -> float:
    """The largest difference of the arrays that both sides have.

    Returns:
        The relative L2 distance; of integers, the share that differs.

    Raises:
        SammiError: it is above the case's tolerance.
    """
    tolerance = CASES[name].tolerance
    worst = 0.0
    for key, theirs in peer.items():
        if ours[key].shape != theirs.shape:
            raise SammiError(
                f"bench {name}: {key} is {ours[key].shape} with us and {theirs.shape} in torch"
            )
        error = _difference(ours[key], theirs)
        worst = max(worst, error)
        if not error <= tolerance:
            raise SammiError(
                f"bench {name}: {key} differs from torch's by {error:.1e}, more than "
                f"{tolerance:.0e}; nothing was timed"
            )
    return worst


def _difference(ours: NpArray, theirs: NpArray) -> float:
    if np.issubdtype(theirs.dtype, np.integer):
        return float(np.mean(ours != theirs))
    distance = np.linalg.norm((ours.astype(np.float64) - theirs).ravel())
    size = np.linalg.norm(theirs.astype(np.float64).ravel())
    return float(distance / size) if size else math.inf


def _in_turn(both: Mapping[Any, Worker], runs: int) -> dict[Any, list[dict[str, float]]]:
    """Warm runs of both sides, who begins changing with every round."""
    found: dict[Any, list[dict[str, float]]] = {side: [] for side in both}
    for number in range(runs):
        order = list(both) if number % 2 == 0 else list(both)[::-1]
        for side in order:
            found[side].append(both[side].ask("run"))
    return found


def _summary(runs: list[dict[str, float]]) -> dict[str, float]:
    cpu, wall = ([run[key] for run in runs] for key in ("cpu_s", "wall_s"))
    return {
        "cpu_s": statistics.median(cpu),
        "cpu_low_s": min(cpu),
        "cpu_high_s": max(cpu),
        "wall_s": statistics.median(wall),
    }


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not a Linux on x86: the short name stays
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": model, "cores": os.cpu_count(), "pinned_to": 1, "load": load}
