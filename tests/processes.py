"""`train.py` in several processes of one machine, for tests."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.xla_flags import fast_flags

ROOT = Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_process(config, workdir, *arguments, devices=1, before="", precision="default"):
    """``train.py`` after the statements ``before``; its stderr is a pipe.

    Programs are compiled once for all runs of a configuration.
    """
    main = (
        "import sys; from sammi_jax.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"
    )
    code = f"{before}\n{main}"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--config", config, "--workdir", workdir, *arguments],
        env=os.environ
        | {
            "XLA_FLAGS": fast_flags(devices, fused=True),
            "JAX_DEFAULT_MATMUL_PRECISION": precision,
            "JAX_COMPILATION_CACHE_DIR": str(config.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_job(config, workdir, *arguments, count=2, before="", before_in=None, **options):
    """The processes of a job; ``before_in`` has other statements for some, by their numbers."""
    job = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count))
    statements = dict.fromkeys(range(count), before) | (before_in or {})
    return [
        start_process(
            config, workdir, *arguments, *job, "--process-id", str(index), before=text, **options
        )
        for index, text in statements.items()
    ]


def signal_at(step, name, times=1, to="os.getpid()"):
    """Statements by which a process sends a signal once it has logged a step.

    By default to itself; ``os.getppid()`` is the process that was started, which watches it.
    """
    return f"""
import os, signal
from sammi_jax.training.metrics_log import Log
write = Log.write
def write_and_signal(log, step, metrics):
    write(log, step, metrics)
    if step == {step}:
        for _ in range({times}):
            os.kill({to}, signal.{name})
Log.write = write_and_signal
"""


def finish(*processes):
    """Exit codes and what stood on stderr. No process may hang; how long it takes is not tested."""
    texts = [process.communicate(timeout=1800)[1] for process in processes]
    return [process.returncode for process in processes], texts


def assert_equal_runs(workdir, straight):
    """Two finished runs have the same losses and the same model, to the bit."""
    assert losses(workdir) == losses(straight)
    models = [folder / "model" / "model.safetensors" for folder in (workdir, straight)]
    assert models[0].read_bytes() == models[1].read_bytes()


def losses(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}
