"""Files and folders: checked JSON, and writing atomically.

What is written atomically gets its name only when it is complete and on the disk. If the process is
killed or the disk is full, what was there before stays.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sammi_jax.errors import SammiError, one_line

# Folders that file servers, archivers and notebooks leave beside a user's files.
_LITTER = {"@eaDir", "__MACOSX", "lost+found"}


def walk_files(folder: Path) -> Iterator[Path]:
    """Every file under a folder, ordered, links to folders followed once.

    Left out is what a user did not put there: names that begin with a dot (``._photo.png``,
    ``.ipynb_checkpoints``) and folders of file servers and archivers.
    """
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in _LITTER
        )
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        SammiError: not readable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SammiError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise SammiError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value of JSON's types atomically, indented, in UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A path that is not UTF-8 holds lone surrogates: "backslashreplace" writes JSON's escapes.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8; parent folders are created."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``: the file written there replaces ``path`` at the end.

    On any error it is deleted instead. Parent folders are created.
    """
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that is renamed to it at the end.

    On any error it is deleted instead. ``folder`` must be absent or empty; its parents are created.
    """
    temporary = _temporary_sibling(folder)
    temporary.mkdir()
    try:
        yield temporary
        rename_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def rename_folder(temporary: Path, folder: Path) -> None:
    """Rename a complete folder once everything in it is on the disk.

    ``folder`` must be absent or empty.
    """
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    os.rename(temporary, folder)  # replaces an empty folder, and nothing else
    _sync(folder.parent)


def _temporary_sibling(path: Path) -> Path:
    """A hidden name that no other process uses, in the same folder: a rename is then atomic."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_destination(folder: str | Path) -> Path:
    """The absolute path of a folder that is to be created.

    Raises:
        SammiError: something is there already, other than an empty folder.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise SammiError(f"{folder}: exists already; name a new folder or remove it first")
    return folder
