"""``sammi doctor``: what this installation has, what is missing, and whether it computes right."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

_GIB = 2**30
_DESCRIPTION = """\
Print versions, devices, memory, the compilation cache, the precision of products and which
optional packages are missing, and segment a few scenes of OpenShapes with the bundled model as a
self-test. Exit code 0: the self-test passed; 1: it did not."""
_EPILOG = """\
example:
  sammi doctor --json"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="check this installation: devices, optional packages, a self-test",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print the same as JSON, for a bug report"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    report = _examine()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for line in _lines(report):
            print(line)
    return 0 if report["self_test"]["passed"] else 1


def _examine() -> dict[str, Any]:
    import jax

    from sammi_jax.doctor import system
    from sammi_jax.doctor.self_test import not_run, self_test

    report = {
        **system.versions(),
        "environment": system.environment(os.environ),
        "host": system.host(),
        "devices": system.devices(),
        "compilation_cache": system.compilation_cache(
            jax.config.values["jax_compilation_cache_dir"]
        ),
        "features": system.features(),
    }
    problem = report["devices"]["problem"]
    if problem is not None:
        return {**report, "matmul": None, "self_test": not_run("there are no devices")}
    return {**report, "matmul": system.matmul_precision(), "self_test": self_test()}


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report for people."""
    yield f"sammi_jax    {report['sammi_jax']}, Python {report['python']}, {report['system']}"
    for heading, values in (
        ("packages", report["packages"]),
        ("environment", report["environment"]),
    ):
        sign = "=" if heading == "environment" else " "
        texts = [f"{name}{sign}{value or 'missing'}" for name, value in values.items()]
        for index, text in enumerate(texts or ["nothing that changes what JAX does"]):
            yield f"{heading if index == 0 else '':12} {text}"
    host = report["host"]
    yield (
        f"host         {host['cores']} CPU cores, {_gib(host['memory'])} of memory, "
        f"{_gib(host['available'])} available"
    )
    yield from _device_lines(report["devices"])
    yield f"cache        {_cache(report['compilation_cache'])}"
    if report["matmul"] is not None:
        yield f"precision    {_precision(report['matmul'])}"
    yield ""
    yield "optional features"
    for feature in report["features"]:
        found = f"{feature['package']} {feature['installed']}"
        state = found if feature["installed"] else f"missing: {feature['command']}"
        yield f"  {feature['name']:12} {state:40} {feature['purpose']}"
    yield ""
    yield f"self-test    {_self_test(report['self_test'])}"


def _device_lines(devices: dict[str, Any]) -> Iterator[str]:
    if devices["problem"] is not None:
        yield f"devices      none: {devices['problem']}"
    if devices["hint"] is not None:
        yield f"devices      {devices['hint']}"
    for index, device in enumerate(devices["found"]):
        memory = "memory unknown to JAX"
        if device["memory"] is not None:
            memory = f"{_gib(device['memory'])} of memory, {_gib(device['memory_in_use'])} in use"
        heading = "devices" if index == 0 and devices["hint"] is None else ""
        yield f"{heading:12} {device['platform']}:{device['id']} {device['kind']}, {memory}"


def _cache(cache: dict[str, Any]) -> str:
    if not cache["path"]:
        return "none: each process compiles anew; set JAX_COMPILATION_CACHE_DIR to a folder"
    if cache["bytes"] is None:
        return f"{cache['path']}, not a local folder"
    state = "writable" if cache["writable"] else "NOT WRITABLE: nothing is added to it"
    return f"{cache['path']}, {cache['files']} files, {_gib(cache['bytes'])}, {state}"


def _precision(matmul: dict[str, Any]) -> str:
    judged = "as expected" if matmul["expected"] else "WHICH IS LESS THAN EXPECTED"
    text = (
        f"float32 products are computed in {matmul['computed_in']} (relative error "
        f"{matmul['relative_error']:.1e}), {judged}"
    )
    if matmul["computed_in"] == "float32":
        return text
    return f"{text}; JAX_DEFAULT_MATMUL_PRECISION=highest asks for float32"


def _self_test(result: dict[str, Any]) -> str:
    if result["error"] is not None:
        return f"FAILED: {result['error']}"
    return (
        f"{'passed' if result['passed'] else 'FAILED'}: mIoU {result['miou']:.3f} of generated "
        f"scenes, at least {result['min_miou']:g} expected; {result['first_seconds']:.1f} s to "
        f"load, compile and segment one, {result['seconds']:.2f} s for each further one"
    )


def _gib(size: int | None) -> str:
    return "an unknown amount" if size is None else f"{size / _GIB:.1f} GiB"
