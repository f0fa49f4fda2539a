"""Whether hours of work leave memory, compilations and speed as they were.

Run: ``python benchmarks/long_run.py train --hours 2`` (training, evaluated again and again, in one
process) or ``python benchmarks/long_run.py serve --requests 100000`` (eight at a time, one in a
hundred bad; ``--small``: by a CAT-Seg of random weights, which answers in a quarter of the time).
Each writes a line of JSON a minute into ``--log``, and prints the summary of such a file. Slopes
are of the line through all points after the first fifth.
"""

import argparse
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
from PIL import Image

from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.bundled import DEFAULT
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import write_model

STEPS_A_ROUND = 100  # between two evaluations
CLASSES = ["red thing; dotted red thing", "green waves", "green gravel"]
# what a bad request sends instead, and the status that it must get
BAD = [
    ({"image": "no base64!", "classes": CLASSES}, 422),
    ({"image": "", "classes": []}, 422),
    ({"classes": CLASSES}, 422),
    ({"image": None, "classes": "x" * 500}, 422),
]


def resident(process: psutil.Process) -> float:
    """MiB that a process and its children hold now."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family) / 2**20


def write_line(log: Path, **values: float) -> None:
    line = json.dumps(values)
    with log.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def slope(log: Path, name: str) -> float:
    """Of a value, an hour."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    rows = rows[len(rows) // 5 :]
    hours = np.array([row["seconds"] for row in rows]) / 3600
    return float(np.polyfit(hours, [row[name] for row in rows], 1)[0])


def train(args: argparse.Namespace) -> None:
    """In this process, so that its compilations can be counted."""
    import jax

    from sammi_jax.cli.main import main

    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    began, process = time.monotonic(), psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder, "run", "log.jsonl")

        def watch() -> None:
            while time.monotonic() - began < args.hours * 3600:
                time.sleep(args.every)
                lines = steps.read_text().splitlines() if steps.exists() else []
                rows = [json.loads(line) for line in lines]
                write_line(
                    args.log,
                    seconds=round(time.monotonic() - began, 1),
                    step=max((row.get("step", 0) for row in rows), default=0),
                    resident_mib=round(resident(process), 1),
                    cpu_seconds=round(sum(process.cpu_times()[:2]), 1),
                    compilations=len(compiled),
                )
            os.kill(os.getpid(), signal.SIGTERM)  # the run saves, and ends

        threading.Thread(target=watch, daemon=True).start()
        settings = {
            "steps": 10**6,
            "task.segmenter": "openshapes",
            "checkpoint_every": STEPS_A_ROUND,
            "validate_every": STEPS_A_ROUND,
            "validation": "('os48/val_unseen',)",
            "eval.num_examples": 20,
        }
        command = ["train", "--config", "openshapes_sammi", "--workdir", str(Path(folder, "run"))]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        code = main(command)
    print(f"ended with code {code}")


def serve(args: argparse.Namespace) -> None:
    """A server of its own process, and eight clients in this one."""
    from sammi_jax.data.catalogue import open_dataset

    scene = io.BytesIO()
    Image.fromarray(open_dataset("os48/val_unseen", 1).source[0]["image"]).save(scene, "PNG")
    with tempfile.TemporaryDirectory() as folder:
        messages, model = Path(folder, "server.txt"), DEFAULT
        if args.small:
            model = str(write_small(Path(folder, "small")))
        command = [sys.executable, "-m", "sammi_jax", "serve"]
        server = subprocess.Popen(
            [*command, "--port", str(args.port), "--model", model],
            stdout=messages.open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            _ask(args, server, f"http://127.0.0.1:{args.port}", scene.getvalue())
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def write_small(folder: Path) -> Path:
    """The bundled model's sizes without SAM, weights at random."""
    config = SEGMENTER_SIZES["openshapes"]
    rng = np.random.default_rng(0)
    params = {
        path: 0.05 * rng.standard_normal(want.shape, np.float32)
        for path, want in expected_params(config).items()
    }
    tokenizer = Tokenizer(build_tokenizer())
    write_model(folder, "catseg", config, params, source={}, licence="", tokenizer=tokenizer)
    return folder


def _ask(args: argparse.Namespace, server: subprocess.Popen, address: str, image: bytes) -> None:
    good = {"image": base64.b64encode(image).decode(), "classes": CLASSES}
    seconds: list[float] = []
    answers: Counter[str] = Counter()
    with httpx.Client(base_url=address, timeout=300) as client:
        while server.poll() is None:
            try:
                client.get("/api/health")
                break
            except httpx.TransportError:
                time.sleep(0.5)
        client.post("/api/segment", json=good)  # compiles for this image and these classes
        began, process = time.monotonic(), psutil.Process(server.pid)

        def ask(index: int) -> None:
            bad = index % 100 == 99
            body, expected = BAD[index // 100 % len(BAD)] if bad else (good, 200)
            sent = time.monotonic()
            try:
                status = client.post("/api/segment", json=body).status_code
            except httpx.HTTPError as error:
                status = type(error).__name__
            if not bad:
                seconds.append(time.monotonic() - sent)
            answers["as expected" if status == expected else f"{status} for {expected}"] += 1

        due = time.monotonic() + args.every
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(ask, range(args.requests)):
                if time.monotonic() >= due:
                    due += args.every
                    write_line(
                        args.log,
                        seconds=round(time.monotonic() - began, 1),
                        requests=len(seconds),
                        resident_mib=round(resident(process), 1),
                        cpu_seconds=round(sum(process.cpu_times()[:2]), 1),
                    )
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99])
    print(f"{args.requests} requests in {time.monotonic() - began:.0f} s: {dict(answers)}")
    print(f"seconds of a good request: p50 {p50:.2f}, p90 {p90:.2f}, p99 {p99:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("long_run.jsonl"))
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines")
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train")
    training.add_argument("--hours", type=float, default=2.0)
    training.set_defaults(run=train)
    serving = commands.add_parser("serve")
    serving.add_argument("--requests", type=int, default=100_000)
    serving.add_argument("--port", type=int, default=7861)
    serving.add_argument("--small", action="store_true")
    serving.set_defaults(run=serve)
    args = parser.parse_args()
    args.log.unlink(missing_ok=True)
    args.run(args)
    rows = args.log.read_text().splitlines() if args.log.exists() else []
    if len(rows) >= 5:
        print(f"resident memory: {slope(args.log, 'resident_mib'):+.1f} MiB an hour")


if __name__ == "__main__":
    main()
