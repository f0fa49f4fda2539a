"""Preparing in several processes: the same bytes, the same errors, and an end with the parent."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.prepare import pool
from sammi_jax.data.prepare import write as prepare_module
from sammi_jax.data.prepare.doctor import examine
from sammi_jax.data.prepare.record_offsets import record_offsets
from sammi_jax.data.prepare.records import read_record
from sammi_jax.data.prepare.write import prepare
from sammi_jax.errors import SammiError
from tests.processes import ROOT
from tests.test_data_prepare import ade, contents

PREPARE = """
import signal, sys
from sammi_jax.cli.main import console
from sammi_jax.data.prepare import write
write._PAIRS_PER_SHARD = 4
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    console(["datasets", "prepare", "ade20k_150", "--split", "validation", "--allow-incomplete",
             "--processes", "2", "--source", sys.argv[1], "--data-dir", sys.argv[2]])
"""


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare_module, "_PAIRS_PER_SHARD", 4)


def prepare_in(processes, source, data_dir):
    return prepare(
        "ade20k_150",
        source,
        data_dir,
        splits=["validation"],
        allow_incomplete=True,
        processes=processes,
    )


def image_of(source, index):
    return source / "images" / "validation" / f"ADE_val_{index:08}.jpg"


def test_the_result_does_not_depend_on_the_number(tmp_path, small_shards):
    """Neither do errors, nor what is found in the prepared set."""
    source = ade(tmp_path / "in", 10)
    good = {index: image_of(source, index).read_bytes() for index in (5, 9)}
    for index in good:
        image_of(source, index).write_bytes(b"no image")
    errors = []
    for processes in (1, 2):
        with pytest.raises(SammiError) as error:
            prepare_in(processes, source, tmp_path / str(processes))
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    assert f"{image_of(source, 5)}: is no image that can be read" in errors[0]
    for index, content in good.items():
        image_of(source, index).write_bytes(content)
    whole = contents(prepare_in(1, source, tmp_path / "whole"))
    with pytest.warns(UserWarning, match="the source has changed"):
        assert contents(prepare_in(2, source, tmp_path / "2")) == whole
    dataset = open_dataset("ade20k_150", data_dir=tmp_path / "2")
    one, two = (examine(dataset.source, 150, 255, processes=n) for n in (1, 2))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    np.testing.assert_array_equal(one.images_with, two.images_with)
    assert (one.images, one.ignored) == (two.images, two.ignored) == (10, 10)


def test_default():
    assert 1 <= pool.default_processes() <= 16


@pytest.fixture
def waiting(tmp_path):
    """`prepare`, one of whose two processes waits for the pipe that stands in for an image."""
    source = ade(tmp_path / "in", 12)
    pipe = image_of(source, 5)
    content = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    command = [sys.executable, "-c", PREPARE, str(source), str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    writer = os.open(pipe, os.O_WRONLY)  # returns when a process has begun to read
    yield source, pipe, content, process, writer
    process.kill()
    process.wait()
    process.stderr.close()


def assert_resumes(source, pipe, content, data_dir, tmp_path):
    """The same command with the image in its place; the shards that were finished are kept."""
    partial_folder = data_dir / "ade20k_150" / "1.0.0.partial"
    left = [path.name for path in partial_folder.iterdir() if path.name.startswith(".")]
    pipe.unlink()
    pipe.write_bytes(content)
    whole = ade(tmp_path / "again", 12)
    expected = contents(prepare_in(1, whole, tmp_path / "whole"))
    with pytest.warns(UserWarning, match="the source has changed"):  # a pipe has no size
        assert contents(prepare_in(1, source, data_dir)) == expected
    return left


def test_after_ctrl_c_nothing_is_half_written(waiting, tmp_path, small_shards):
    source, pipe, content, process, writer = waiting
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    os.write(writer, content)
    os.close(writer)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert error.splitlines()[-1] == "sammi: interrupted"
    assert "Traceback" not in error
    assert assert_resumes(source, pipe, content, tmp_path / "out", tmp_path) == []


def gone(writer):
    """Waits until no process reads from the pipe."""
    poll = select.poll()
    poll.register(writer, 0)
    return poll.poll(600_000)


@pytest.mark.slow
def test_processes_end_with_a_killed_parent(waiting, tmp_path, small_shards):
    source, pipe, content, process, writer = waiting
    process.kill()
    assert gone(writer)
    os.close(writer)
    # Half a shard may lie there, under a name that no reader takes.
    assert_resumes(source, pipe, content, tmp_path / "out", tmp_path)


@pytest.mark.slow
def test_a_killed_process_is_one_line(waiting, tmp_path, small_shards):
    _, _, _, process, writer = waiting
    tasks = f"/proc/{process.pid}/task/{process.pid}/children"
    for child in Path(tasks).read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    assert gone(writer)
    os.close(writer)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 1
    (line,) = [line for line in error.splitlines() if line.startswith("sammi: error")]
    assert "was killed, perhaps for lack of memory; run the same command again" in line


def test_offsets_of_records(tmp_path):
    """Each record is read from a file that holds nothing but it and the index."""
    from array_record.python import array_record_module

    rng = np.random.default_rng(0)
    sizes = [0, 1, 65536 - 24 - 40 - 6 - 64, 65536, 200_000, *rng.integers(0, 3000, 200)]
    records = [rng.bytes(int(size)) for size in sizes]
    path, copy = tmp_path / "whole", tmp_path / "copy"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    offsets, content = record_offsets(path, len(records)), path.read_bytes()
    for index in range(0, len(records), 7):
        only = bytearray(len(content))
        for part in (slice(*offsets[index : index + 2]), slice(offsets[-1], None)):
            only[part] = content[part]
        copy.write_bytes(only)
        assert read_record(copy, index) == records[index]
        assert read_record(copy, index + 1 if index < 100 else index - 1) is None
