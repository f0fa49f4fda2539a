"""What a restart costs with each kind of compilation cache, by the parts of a run's start.

Trains the demo's SAM-MI for a step or two, then starts it again, each time in a new process: with
an empty and a warm cache, on disk and in a bucket. The bucket is an emulator's on this machine.

    python benchmarks/restart.py --workdir DIR
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gcp_storage_emulator.server import create_server

from sammi_jax.training.metrics_log import LOG_FILE, read_log

PARTS = ("import", "devices", "model", "restore", "data", "trace", "compile", "step")
BUCKET = "bucket"


def first_record(workdir: Path, cache: str | None, port: int) -> dict[str, Any]:
    """Start the run, end it after its first step, and return what it logged of that."""
    log = workdir / LOG_FILE
    known = len(_starts(log))
    environment = os.environ | {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        environment.pop(name, None)
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    command = [sys.executable, "-m", "sammi_jax", "train", "--config", "openshapes_sammi"]
    process = subprocess.Popen(
        [*command, "--workdir", workdir, "--set", "log_every=1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(_starts(log)) == known:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode}")
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return _starts(log)[-1]


def _starts(log: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(log) if "start_s" in record]


def main() -> None:
    """Print a table: seconds, and CPU seconds in brackets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=2, help="restarts with each warm cache")
    args = parser.parse_args()
    disk = str((args.workdir / "compiled").absolute())
    rows = []
    for name, cache in (("on disk", disk), ("in a bucket", f"gs://{BUCKET}/compiled")):
        rows += [(f"restart, empty cache {name}", cache, 1)]
        rows += [(f"restart, warm cache {name}", cache, args.runs)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        first_record(args.workdir / "run", None, port)
        print("|  | load |", " | ".join(PARTS), "| first step after | programs cached |")
        print("|---" * (len(PARTS) + 4) + "|")
        for name, cache, runs in rows:
            for _ in range(runs):
                load = os.getloadavg()[0]
                found = first_record(args.workdir / "run", cache, port)
                cells = [
                    f"{found[f'start_{part}s']:.1f} ({found[f'start_{part}cpu_s']:.1f})"
                    for part in (*(f"{part}_" for part in PARTS), "")
                ]
                print(f"| {name} | {load:.0f} |", " | ".join(cells), "|", end="")
                print(f" {found['start_cached']:.0f} |", flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
