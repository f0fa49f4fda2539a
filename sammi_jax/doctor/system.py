"""Versions, devices, memory, the compilation cache, and the precision of products."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sammi_jax import __version__
from sammi_jax.config.extras import EXTRAS, installed_version
from sammi_jax.parallel.backend import CUDA_COMMAND, backend_problem

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "safetensors",
    "tokenizers",
    "transformers",
    "pillow",
)
_PLUGINS = re.compile(r"jax[-_](cuda|rocm|metal)|libtpu")  # JAX's backends, as distributions
_VARIABLES = re.compile(r"JAX_\w+|XLA_\w+|LIBTPU_\w+|TPU_\w+|CUDA_VISIBLE_DEVICES")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_FULL_PRECISION = ("highest", "float32")  # values of jax_default_matmul_precision
# Relative L2 errors of products of 256 terms: of float32 about 2e-7, of three bfloat16 passes 5e-6,
# of TensorFloat-32 3e-4, of bfloat16 2e-3.
_ROUNDING = (("float32", 1e-6), ("bfloat16_3x", 5e-5), ("tensorfloat32", 9e-4))


def versions() -> dict[str, Any]:
    """Of this package, Python, the system, the packages that matter, and JAX's plugins."""
    names = {str(found.metadata["Name"]) for found in importlib.metadata.distributions()}
    plugins = sorted(name for name in names if name and _PLUGINS.match(name))
    return {
        "sammi_jax": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: installed_version(name) for name in (*_PACKAGES, *plugins)},
    }


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what JAX does."""
    return {name: variables[name] for name in sorted(variables) if _VARIABLES.fullmatch(name)}


def devices() -> dict[str, Any]:
    """JAX's devices of this process, with their memory in bytes where they tell it.

    Returns:
        ``problem``, why there are none (None: there are), ``hint``, where better ones seem to be
        left unused, and ``found``.
    """
    problem = backend_problem()
    if problem is not None:
        return {"problem": problem, "hint": None, "found": []}
    found = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        found.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "memory": stats.get("bytes_limit"),
                "memory_in_use": stats.get("bytes_in_use"),
            }
        )
    hint = None
    if _NVIDIA_DRIVER.exists() and all(device["platform"] == "cpu" for device in found):
        hint = f"an NVIDIA driver is here, but JAX computes on the CPU; {CUDA_COMMAND}"
    return {"problem": None, "hint": hint, "found": found}


def host() -> dict[str, Any]:
    """CPU cores of this process, and the machine's memory in bytes; None: not known."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cores": cores, "memory": _pages("SC_PHYS_PAGES"), "available": _available()}


def _pages(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not of this system
        return None


def _available() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return _pages("SC_AVPHYS_PAGES")
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else None


def compilation_cache(path: str | None) -> dict[str, Any]:
    """Of the folder of JAX's compiled programs: its files and bytes, and whether it can be written.

    Args:
        path: `jax_compilation_cache_dir`. Where there is none, or it is not a local folder, the
            rest is None.
    """
    report = {"path": path, "files": None, "bytes": None, "writable": None}
    if not path or "://" in path:
        return report
    folder = Path(path)
    files = folder.rglob("*") if folder.is_dir() else ()
    sizes = [file.stat().st_size for file in files if file.is_file()]
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return {**report, "files": len(sizes), "bytes": sum(sizes), "writable": writable}


def matmul_precision() -> dict[str, Any]:
    """How exactly float32 matrices are multiplied on the first device, measured.

    Returns:
        ``setting`` (`jax_default_matmul_precision`), ``relative_error`` (L2, against float64),
        ``computed_in``, the type with about that error, and ``expected``: whether this is usual.
        A CPU multiplies in float32; other devices may round more, unless the setting asks for
        float32.
    """
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 256, 256)).astype(np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    product = np.asarray(jnp.matmul(left, right), np.float64)
    error = float(np.linalg.norm(product - exact) / np.linalg.norm(exact))
    setting = jax.config.values["jax_default_matmul_precision"] or "default"
    computed_in = next((name for name, limit in _ROUNDING if error < limit), "bfloat16")
    must_be_exact = setting in _FULL_PRECISION or jax.devices()[0].platform == "cpu"
    return {
        "setting": setting,
        "relative_error": error,
        "computed_in": computed_in,
        "expected": computed_in == "float32" or not must_be_exact,
    }


def features() -> list[dict[str, Any]]:
    """The optional features: name, package, its version (None: missing), purpose, command."""
    return [
        {
            "name": extra.name,
            "package": extra.package,
            "installed": extra.installed,
            "purpose": extra.purpose,
            "command": extra.command,
        }
        for extra in EXTRAS.values()
    ]
