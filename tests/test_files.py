"""Files that are written atomically, and JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sammi_jax.errors import SammiError, listed
from sammi_jax.files import (
    atomic_file,
    atomic_folder,
    check_destination,
    read_json,
    write_atomic,
    write_json,
)

ROOT = Path(__file__).resolve().parent.parent


def test_text_and_bytes_are_written_in_new_folders(tmp_path):
    write_atomic(tmp_path / "a" / "b.txt", "größe\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "größe\n".encode()
    write_atomic(tmp_path / "a" / "b.txt", b"\0\1")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\0\1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write():
        with atomic_file(file) as temporary:
            temporary.write_text("half of the n")
            assert file.read_text() == "old"
            raise error

    with pytest.raises(error):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_killed_process_keeps_the_old_file(tmp_path):
    script = """
import os, signal
from pathlib import Path
from sammi_jax.files import atomic_file
with atomic_file(Path("a.txt")) as temporary:
    temporary.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "a.txt").write_text("old")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a.txt").read_text() == "old"
    write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_json_comes_back(tmp_path):
    value = {"name": "größe", "file": "not-utf8-\udcff", "numbers": [1, 2.5, None], "more": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert text == json.dumps(value, indent=2, ensure_ascii=False).replace("\udcff", "\\udcff") + (
        "\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not readable as JSON"), ("[]", "expected a JSON object, found list"), (None, "JSON")],
)
def test_json_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SammiError, match=rf"a\.json: .*{message}"):
        read_json(file)


def test_a_folder_appears_complete_and_replaces_an_empty_one(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    with atomic_folder(folder, "marker.txt") as temporary:
        (temporary / "a").write_text("1")
        assert list(folder.iterdir()) == []
    assert [path.name for path in folder.iterdir()] == ["a"]
    with pytest.raises(OSError, match="not empty"), atomic_folder(folder, "marker.txt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_destinations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert check_destination("empty") == tmp_path / "empty"
    assert check_destination("new") == tmp_path / "new"
    (tmp_path / "full" / "x").mkdir(parents=True)
    for name in ("full", "link"):
        with pytest.raises(SammiError, match=f"{name}: exists already; name a new folder"):
            check_destination(tmp_path / name)


def test_long_lists_are_shortened():
    assert listed([]) == ""
    assert listed(["a", "b"], limit=2) == "a, b"
    assert listed(["a", "b", "c", "d"], limit=2, separator="; ") == "a; b and 2 more"
    assert listed([str(i) for i in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
