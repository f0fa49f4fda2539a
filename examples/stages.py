"""Runs the `sammi` commands of a longer piece of work: what is done is not done again."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
# Programs this small run as fast when XLA optimizes less, and compile a good deal faster.
_XLA_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
_ENVIRONMENT = {"XLA_FLAGS": _XLA_FLAGS} | os.environ


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: shown, and the name of its log.
        made: the file or folder that is there when the command has done its work.
        command: after ``python``.
    """

    name: str
    made: Path
    command: tuple[str, ...]


class Stages:
    """Runs jobs and keeps their seconds.

    Args:
        logs: folder for what jobs print.
        compilation_cache: folder for compiled programs, so that runs that differ in their seed
            alone compile once; None: none.

    Attributes:
        times: seconds of each job that ran, by name.
    """

    def __init__(self, logs: Path, compilation_cache: Path | None = None):
        self.times: dict[str, float] = {}
        self._logs = logs
        self._environment = dict(_ENVIRONMENT)
        if compilation_cache is not None:
            self._environment["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache)

    def run(self, *jobs: Job) -> None:
        """Run jobs at the same time, those that are done already left out.

        The first one prints to the terminal, the others to files.

        Raises:
            subprocess.CalledProcessError: one failed; what it printed is shown.
        """
        open_jobs = [job for job in jobs if not job.made.exists()]
        self._run_at_once(open_jobs, len(open_jobs), open_jobs[:1])

    def run_queue(self, jobs: Sequence[Job], at_once: int) -> None:
        """Run jobs in their order, ``at_once`` at a time; all print to files.

        Raises:
            subprocess.CalledProcessError: one failed; what it printed is shown.
        """
        self._run_at_once([job for job in jobs if not job.made.exists()], at_once, [])

    def _run_at_once(self, jobs: Sequence[Job], at_once: int, on_terminal: Sequence[Job]) -> None:
        if not jobs:
            return
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(self._run_one, job, job not in on_terminal) for job in jobs]
            try:
                for future in running:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _run_one(self, job: Job, to_file: bool) -> None:
        shown = shlex.join(["python", *job.command])
        log = self._logs / f"{job.name.replace(' ', '_')}.log"
        where = f"\n(prints to {log})" if to_file else ""
        print(f"\n[{job.name}] {shown}{where}", flush=True)
        began = time.perf_counter()
        if to_file:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w") as output:
                code = self._call(job.command, output)
        else:
            code = self._call(job.command)
        if code != 0:
            if to_file:
                print(log.read_text(), file=sys.stderr)
            raise subprocess.CalledProcessError(code, [sys.executable, *job.command])
        self.times[job.name] = time.perf_counter() - began

    def _call(self, command: Sequence[str], output: IO[str] | None = None) -> int:
        """Run it with all that it prints in a file, or on the terminal; the exit code."""
        return subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=ROOT,
            env=self._environment,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        ).returncode


def train(name: str, config: str, workdir: Path, *settings: str) -> Job:
    """`sammi train`, whose model is then ``workdir/model``."""
    command = ("-m", "sammi_jax", "train", "--config", config, "--workdir", str(workdir))
    return Job(name, workdir / "model", (*command, *_set(settings)))


def convert(name: str, kind: str, source: str | Path, model: Path, *options: str) -> Job:
    """`sammi convert`, which makes the folder ``model``."""
    return Job(name, model, ("-m", "sammi_jax", "convert", kind, str(source), str(model), *options))


def evaluate(
    name: str,
    model: str | Path,
    workdir: Path,
    datasets: Sequence[str],
    *settings: str,
    config: str = "openshapes_sammi",
    data_dir: Path | None = None,
) -> Job:
    """`sammi eval`, whose numbers are then in ``workdir/results.json``."""
    command = ("-m", "sammi_jax", "eval", "--config", config, "--model", str(model))
    command += ("--datasets", ",".join(datasets), "--workdir", str(workdir))
    if data_dir is not None:
        command += ("--data-dir", str(data_dir))
    return Job(name, workdir / "results.json", (*command, *_set(settings)))


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]
