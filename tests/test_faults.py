"""Disks that are full, clocks that jump, runs that meet in one folder, data that change.

The full disk is a limit on the size of files: the same calls fail, with another number.
`tests/test_full_disk.py` (slow) has real ones.
"""

import errno
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from sammi_jax import locks
from sammi_jax.cli.main import main
from sammi_jax.data.catalogue import fingerprint, open_dataset
from sammi_jax.data.input.pipeline import batch_stream, iterate
from sammi_jax.errors import SammiError
from sammi_jax.files import (
    AppendedFile,
    atomic_folder,
    check_destination,
    disk_problem,
    write_atomic,
)
from sammi_jax.images import write_image
from sammi_jax.inference.geotiff import GeoImage
from sammi_jax.locks import exclusive
from sammi_jax.training.checkpoint import Checkpoints, checkpoint_steps
from sammi_jax.training.loop import train
from sammi_jax.training.metrics_log import Log, _Board
from tests.processes import ROOT
from tests.test_train import CONFIG, Dummy, exported, records

LIMIT = 4096


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A folder where CONFIG was trained without a break; tests only read it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(Dummy(), CONFIG, workdir)
    return workdir


NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)


@contextmanager
def no_room(limit=LIMIT):
    """No file can become larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_geotiff(path):
    from affine import Affine
    from rasterio.crs import CRS

    valid, crs = np.ones(NOISE.shape[:2], bool), CRS.from_epsg(3857)
    place = GeoImage(NOISE, valid, crs, Affine.translation(5, 7))
    place.write_labels(NOISE[..., 0].astype(int), 200, path)


def write_folder(path):
    from safetensors.numpy import save_file

    with atomic_folder(path, "a.safetensors") as new:
        save_file({"a": NOISE}, new / "a.safetensors")


def write_shard(path):
    from sammi_jax.data.prepare import records

    with records.atomic_file(path) as temporary:
        writer = records._array_record().ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        try:
            for row in NOISE:
                writer.write(row.tobytes())
        finally:
            writer.close()


WRITERS = {
    "text": lambda path: write_atomic(path, "x" * 2 * LIMIT),
    "png": lambda path: write_image(path, Image.fromarray(NOISE)),
    "jpeg": lambda path: write_image(path, Image.fromarray(NOISE), "JPEG"),
    "geotiff": write_geotiff,
    "weights": write_folder,
    "shard": write_shard,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_what_does_not_fit_leaves_nothing(tmp_path, write):
    """Whatever library writes: one line that names the file, and the next try succeeds."""
    path = tmp_path / "result"
    with no_room(), pytest.raises(SammiError) as error:
        write(path)
    assert str(error.value).startswith(f"{path}: the file is larger than its disk")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    write(path)
    assert path.exists()


def test_what_was_there_stays(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with no_room(), pytest.raises(SammiError):
        write_atomic(tmp_path / "a", "x" * 2 * LIMIT)
    assert (tmp_path / "a").read_text() == "old"


def write_until_full(write):
    while True:
        write()


def test_lines_before_the_one_that_does_not_fit_stay(tmp_path):
    file = AppendedFile(tmp_path / "log")
    with no_room(), pytest.raises(SammiError, match="log: the file is larger"):
        write_until_full(lambda: file.write("a line\n"))
    file.close()
    *whole, _ = (tmp_path / "log").read_text().split("\n")
    assert set(whole) == {"a line"}
    assert (tmp_path / "log").stat().st_size == LIMIT


def test_tensorboard_does_not_wait_for_a_full_disk(tmp_path):
    """tensorboardX's own writer does, for ever."""
    board = _Board(tmp_path, 0)
    with no_room(), pytest.raises(SammiError, match="the file is larger"):
        write_until_full(lambda: board.add(1, {"loss": 1.0}))
    board.close()


def test_problems_of_disks_are_recognized():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert disk_problem(full).startswith("the disk is full; free space on it, and run")
    quoted = ValueError('RESOURCE_EXHAUSTED: Error writing "d/1" [ENOSPC No space left on device]')
    assert disk_problem(quoted) == disk_problem(full)
    assert "read-only" in disk_problem(OSError(errno.EROFS, "Read-only file system"))
    assert "permission denied" in disk_problem(PermissionError(errno.EACCES, "Permission denied"))
    assert disk_problem(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert disk_problem(ValueError("bad")) is None


def test_a_folder_inside_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SammiError, match=r"file: cannot be written to .*; name a folder"):
        check_destination(tmp_path / "file" / "new")
    with pytest.raises(SammiError, match="file: is a file where a folder has to be"):
        write_atomic(tmp_path / "file" / "new", "x")
    out = str(tmp_path / "file" / "x")
    assert main(["datasets", "draw", "os48/val_seen", "--count", "1", "--out", out]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sammi: error:")


def test_a_disk_that_is_full_in_the_middle_of_a_run(tmp_path, straight, monkeypatch):
    """For the record of the last step: what was saved before is there, and the run resumes."""
    write = Log.write

    def write_without_room(log, step, metrics):
        if step < 4:
            return write(log, step, metrics)
        while checkpoint_steps(tmp_path) != [2]:  # it is written in the background
            time.sleep(0.01)
        with no_room((tmp_path / "log.jsonl").stat().st_size + 100):
            return write(log, step, metrics)

    monkeypatch.setattr(Log, "write", write_without_room)
    with pytest.raises(SammiError, match=r"log\.jsonl: the file is larger than its disk"):
        train(Dummy(), CONFIG, tmp_path)
    monkeypatch.undo()
    assert checkpoint_steps(tmp_path) == [2]
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 3
    resumed = exported(train(Dummy(), CONFIG, tmp_path))
    assert [r["loss"] for r in records(tmp_path)] == [r["loss"] for r in records(straight)]
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)


# --- two processes in one folder ---

HOLD = """
import sys, time
from pathlib import Path
from sammi_jax.locks import exclusive
with exclusive(Path(sys.argv[1]), Path("x")):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Start a process that holds a lock; it lets it go when its stdin is closed."""
    started = []

    def start(file):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, file], env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "mine\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_runs_in_one_folder(tmp_path, hold, straight, monkeypatch):
    """The second is refused; once the first is killed, the next is not."""
    lock = tmp_path / ".train.lock"
    first = hold(lock)
    with pytest.raises(SammiError) as error:
        train(Dummy(), CONFIG, tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}: process {first.pid} on ")
    assert text.endswith(" works there; wait for it, end it, or name another folder")
    assert {path.name for path in tmp_path.iterdir()} == {lock.name}
    # As if it were on another host: the system there may let go late.
    lock.write_text(f"{first.pid} elsewhere 2026-01-01 00:00:00\n")
    monkeypatch.setattr(locks, "OTHER_HOST_WAIT_S", 0.0)
    with (
        pytest.raises(SammiError, match=f"on elsewhere, .*; if that host is gone, delete {lock}"),
        exclusive(lock, tmp_path),
    ):
        pass
    monkeypatch.setattr(locks, "OTHER_HOST_WAIT_S", 1e9)
    monkeypatch.setattr(locks.time, "sleep", lambda _: (first.kill(), first.wait()))
    with exclusive(lock, tmp_path):
        assert lock.read_text().startswith(f"{os.getpid()} ")
    assert not lock.exists()


def test_a_lock_is_free_after_its_block(tmp_path, hold):
    with pytest.raises(KeyError), exclusive(tmp_path / "lock", tmp_path):
        raise KeyError
    holder = hold(tmp_path / "lock")
    holder.communicate("")
    assert not (tmp_path / "lock").exists()


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def lockf(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "lockf", lockf)
    with (
        pytest.warns(UserWarning, match="its disk has no locks .* start one at a time"),
        exclusive(tmp_path / "lock", tmp_path),
    ):
        pass


# --- clocks ---


def test_a_clock_that_jumps_changes_nothing(tmp_path, straight, monkeypatch):
    """A day back at every look at it; the run resumes a day ahead."""
    now, days = time.time, itertools.count(1)
    monkeypatch.setattr(time, "time", lambda: now() - 86400.0 * next(days))
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=3), CONFIG, tmp_path)
    monkeypatch.setattr(time, "time", lambda: now() + 86400.0)
    resumed = exported(train(Dummy(), CONFIG, tmp_path))
    assert checkpoint_steps(tmp_path) == [2, 4]
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    found = records(tmp_path)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    for before, after in itertools.pairwise(found):
        assert 0.0 < after["spent_s"] - before["spent_s"] < 20000.0
    for record in found:
        assert 0.0 < record["goodput"] < 1.0
        assert record["images_per_s"] > 0.0
        starts = [value for name, value in record.items() if name.startswith("start_")]
        assert min(starts, default=0.0) >= 0.0


def test_a_clock_that_is_set_forward_within_a_save(tmp_path):
    """Orbax then takes it that the disk did not answer."""
    checkpoints = Checkpoints(tmp_path, 1, {})
    checkpoints._saving = 6
    with pytest.raises(SammiError) as error, checkpoints._save_errors():
        raise TimeoutError("ChainedFuture completed 0/2 futures but timed out")
    checkpoints.close()
    assert str(error.value) == (
        f"{tmp_path / 'checkpoints' / '6'}: could not be written (the disk did not answer for "
        "minutes, or the clock was set forward); the same command resumes from the checkpoint "
        "before it"
    )


# --- data that change ---


class Labeled(Dummy):
    """Its training set has files."""

    def __init__(self, *states, fail_at=None):
        super().__init__(fail_at=fail_at)
        self.states = iter(states)

    def data_fingerprint(self):
        return next(self.states)


def test_data_that_changed_since_a_run_began(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        train(Labeled("a", fail_at=3), CONFIG, tmp_path)
    with pytest.raises(SammiError) as error:
        train(Labeled("b"), CONFIG, tmp_path)
    file = tmp_path / "data.json"
    assert "has changed since the run in" in str(error.value)
    assert str(error.value).endswith(f"to go on with the data as they are now, delete {file}")
    assert checkpoint_steps(tmp_path) == [2]
    train(Labeled("a", "a"), CONFIG, tmp_path)  # restored
    assert [r["loss"] for r in records(tmp_path)] == [r["loss"] for r in records(straight)]
    file.unlink()
    with pytest.warns(UserWarning, match="has changed while the run in .* trained on it"):
        train(Labeled("b", "c"), CONFIG, tmp_path)
    assert json.loads(file.read_text())["fingerprint"] == "b"


def test_what_a_training_set_is(tmp_path):
    folder = tmp_path / "set"
    draw = ["datasets", "draw", "os48/val_seen", "--count", "3", "--out", str(folder)]
    assert main(draw) == 0
    begun = fingerprint(open_dataset(f"folder:{folder}"))
    assert fingerprint(open_dataset(f"folder:{folder}")) == begun
    moved = folder.rename(tmp_path / "moved")
    assert fingerprint(open_dataset(f"folder:{moved}")) == begun
    assert fingerprint(open_dataset(f"folder:{moved}", 2)) != begun
    image = sorted((moved / "images").iterdir())[0]
    dataset = open_dataset(f"folder:{moved}")
    content = image.read_bytes()
    image.write_bytes(content + b"0")
    assert fingerprint(dataset) != begun
    image.unlink()
    assert fingerprint(dataset) != begun
    image.write_bytes(content)
    assert fingerprint(dataset) == begun
    (moved / "classes.txt").write_text((moved / "classes.txt").read_text() + "another\n")
    assert fingerprint(open_dataset(f"folder:{moved}")) != begun
    assert fingerprint(open_dataset("os48/val_seen")) == ""


# --- data workers ---


@dataclass(frozen=True)
class Pids:
    """Examples that say which process made them."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return {"index": np.array(index), "pid": np.array(os.getpid())}


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named():
    stream = batch_stream(Pids(), [], batch_size=2, seed=0)
    batches = iterate(stream, 0, workers=1)
    worker = int(next(batches)["pid"][0])
    assert worker != os.getpid()
    for number in (signal.SIGINT, signal.SIGTERM):  # what a terminal and Slurm send to all
        os.kill(worker, number)
    ahead = [next(batches) for _ in range(20)]
    np.testing.assert_array_equal(ahead[-1]["index"], stream[20]["index"])
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(SammiError) as error:
        for _ in batches:
            pass
    assert str(error.value).startswith("a data worker process ended with exit code -9")
    assert "lower data.workers=1, and run the same command again" in str(error.value)
