"""Commands as users run them on a disk that is full, or read-only, and then no more; signals at any
moment; data workers that are killed.

A small disk is mounted, which needs root or sudo without a password.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sammi_jax.training.checkpoint import checkpoint_steps
from tests.processes import ROOT, assert_equal_runs, finish, start_process
from tests.test_train_kill import EXPERIMENT

pytestmark = pytest.mark.slow
STEPS = 20
SHORT = ("--set", f"steps={STEPS}")
RUN = "import sys; from sammi_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
FULL, READ_ONLY = "the disk is full; free space on it", "the disk is read-only"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(EXPERIMENT)
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A folder where the experiment was trained without a break; tests only read it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    assert finish(start_process(config, workdir, *SHORT))[0] == [0]
    return workdir


class Disk:
    """A disk in memory.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path):
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=100m", "tmpfs")

    def _mount(self, *arguments):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        subprocess.run([*sudo, "mount", *arguments, self.path], check=True)

    def resize(self, kilobytes):
        self._mount("-o", f"remount,rw,size={kilobytes}k")

    def leave(self, kilobytes):
        """Let so much be free."""
        usage = shutil.disk_usage(self.path)
        self.resize((usage.total - usage.free) // 1024 + kilobytes)

    def make_read_only(self):
        self._mount("-o", "remount,ro")

    def remove(self):
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        subprocess.run([*sudo, "umount", "-l", self.path], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


def last_line(text):
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("kilobytes", [8, 200, 2_500, 3_200, 5_000, 8_500])
def test_training_on_a_full_disk(config, straight, disk, kilobytes):
    """What was saved stays; the same command, once there is room, ends as if there always was."""
    workdir = disk.path / "run"
    disk.resize(kilobytes)
    (code,), (text,) = finish(start_process(config, workdir, *SHORT))
    assert code == 1, text
    assert FULL in last_line(text)
    assert str(workdir) in last_line(text)
    kept = checkpoint_steps(workdir)
    if kilobytes > 3_200:
        assert kept
    disk.resize(100_000)
    (code,), (text,) = finish(start_process(config, workdir, *SHORT))
    assert code == 0, text
    assert "damaged" not in text
    assert_equal_runs(workdir, straight)


def run(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}, timeout=1800, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def owner(tmp_path):
    """Images as the owner of PST900 ships them, and three of them alone."""
    rng = np.random.default_rng(0)
    top = tmp_path / "owner" / "PST900_RGBT_Dataset" / "test"
    for part, shape, high in (("thermal", (64, 80, 3), 256), ("labels", (64, 80), 5)):
        (top / part).mkdir(parents=True)
        for index in range(3):
            values = rng.integers(0, high, shape, np.uint8)
            Image.fromarray(values).save(top / part / f"{index}.png")
    return tmp_path / "owner"


COMMANDS = {
    "convert": lambda out, owner: ("convert", "sammi", "openshapes", out / "model"),
    "prepare": lambda out, owner: (
        "datasets", "prepare", "mess_pst900", "--source", owner, "--data-dir", out,
        "--allow-incomplete",
    ),
    "draw": lambda out, owner: ("datasets", "draw", "os48/train", "--count", 9, "--out", out / "a"),
    "segment": lambda out, owner: ("segment", owner, "--classes", "red thing, blue thing",
                                   "--out", out / "a"),
    "eval": lambda out, owner: (
        "eval", "--config", "openshapes_sammi", "--datasets", "os48/val_seen", "--workdir",
        out / "a", "--set", "eval.num_examples=2", "--set", "eval.batch_size=1", "--set",
        "eval.save_every=1", "--set", "eval.panels=2", "--set", "eval.save_labels=True",
    ),
    "cache": lambda out, owner: (
        "cache", "--config", "openshapes_sammi", "--out", out / "a", "--set",
        "data.num_examples=4", "--set", "batch_size=2",
    ),
    "export": lambda out, owner: ("export", out / "a", "--platforms", "cpu"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_full_disk(disk, owner, tmp_path, command):
    """One line, exit code 1; with room the same command succeeds."""
    arguments = COMMANDS[command](disk.path, owner)
    (disk.path / "mine").write_text("was here before")
    disk.leave(8)
    code, text = run(*arguments, cwd=tmp_path)
    assert code == 1, text
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if FULL in line or "GB are free" in line]
    assert lines, text
    assert all(str(disk.path) in line for line in lines)
    assert (disk.path / "mine").read_text() == "was here before"
    disk.make_read_only()
    code, text = run(*arguments, cwd=tmp_path)
    assert code == 1, text
    assert "Traceback" not in text
    assert READ_ONLY in text or "on a disk that is read-only" in text
    disk.resize(100_000)
    code, text = run(*arguments, cwd=tmp_path)
    assert code == 0, text


def test_training_in_a_read_only_folder(config, disk):
    disk.make_read_only()
    (code,), (text,) = finish(start_process(config, disk.path / "run", *SHORT))
    assert code == 1
    assert last_line(text).startswith(f"sammi train: {disk.path}/run")
    assert READ_ONLY in last_line(text)


# --- signals ---

# A signal before a random one of these events, which Python reports to whoever audits it.
EVENTS = ("import", "open", "os.mkdir", "os.rename", "os.remove", "_thread.start_new_thread")
SIGNAL = f"""
import itertools, os, signal, sys
numbers = itertools.count(1)
def send(event, args):
    if event in {EVENTS} and next(numbers) == {{number}}:
        os.kill(os.getpid(), signal.{{name}})
sys.addaudithook(send)
"""
COUNT = f"""
import atexit, itertools, os, sys
numbers, begun = itertools.count(1), []
def count(event, args):
    if event in {EVENTS}:
        number = next(numbers)
        if not begun and event == "open" and str(args[0]).endswith("log.jsonl"):
            begun.append(number)
sys.addaudithook(count)
atexit.register(lambda: os.write(2, b"events %d %d\\n" % (*begun, next(numbers))))
"""


def test_signals_at_any_moment(config, straight, tmp_path):
    """12 runs, each at a random one: while modules load, it compiles, trains, saves, exports.

    Most events are imports: half of the signals come after the log was opened.
    """
    (code,), (text,) = finish(start_process(config, tmp_path / "counted", *SHORT, before=COUNT))
    assert code == 0
    begun, total = map(int, text.rsplit("events ", 1)[1].split()[:2])
    rng, codes = random.Random(0), []
    for index, name in zip(range(12), itertools.cycle(["SIGTERM", "SIGINT"])):
        workdir = tmp_path / f"run{index}"
        number = rng.randrange(begun if index % 4 > 1 else 1, total)
        before = SIGNAL.format(number=number, name=name)
        (code,), (text,) = finish(start_process(config, workdir, *SHORT, before=before))
        codes.append(code)
        # 0: it came after the last step. Without a handler a signal ends the process.
        allowed = {"SIGTERM": (0, 75, -signal.SIGTERM), "SIGINT": (0, 75, 130, 1, -signal.SIGINT)}[
            name
        ]
        assert code in allowed, text
        if code == 75:
            assert "the same command resumes from there" in last_line(text)
        while not (workdir / "model").exists():
            (code,), (text,) = finish(start_process(config, workdir, *SHORT))
            assert code == 0, text
        assert_equal_runs(workdir, straight)
    print(f"exit codes {codes}")
    assert 75 in codes


# --- data workers ---

KILL_WORKER = """
import multiprocessing
from sammi_jax.training.metrics_log import Log
write = Log.write
def write_and_kill(log, step, metrics):
    write(log, step, metrics)
    if step == 7:
        multiprocessing.active_children()[0].kill()
Log.write = write_and_kill
"""


def test_a_killed_worker_ends_the_run_which_resumes(config, straight, tmp_path):
    workers = (*SHORT, "--set", "data.workers=2")
    process = start_process(config, tmp_path, *workers, before=KILL_WORKER)
    (code,), (text,) = finish(process)
    assert code == 1, text
    assert "sammi train: a data worker process ended with exit code -9" in text
    assert checkpoint_steps(tmp_path)
    (code,), (text,) = finish(start_process(config, tmp_path, *workers))
    assert code == 0, text
    assert_equal_runs(tmp_path, straight)


def test_workers_end_with_a_run_that_is_killed(config, tmp_path):
    """They hold its stderr, whose end is awaited."""
    kill = KILL_WORKER.replace(
        "multiprocessing.active_children()[0].kill()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    )
    workers = (*SHORT, "--set", "data.workers=2")
    assert finish(start_process(config, tmp_path, *workers, before=kill))[0] == [-signal.SIGKILL]
