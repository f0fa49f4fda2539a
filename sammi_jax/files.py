"""Files as we treat them: checked JSON, and folders that appear whole or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sammi_jax.errors import SammiError


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


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, to be quoted in one of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary sibling that becomes ``folder`` at the end, and vanishes on any error.

    ``folder`` must be absent or empty; parents are made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, with all that is in it on the disk.

    ``folder`` must be absent or empty.
    """
    for path in [*temporary.rglob("*"), temporary]:
        _sync(path)
    os.rename(temporary, folder)  # replaces an empty folder, and nothing else
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_destination(folder: str | Path) -> Path:
    """The path, if a model folder can be written there.

    Raises:
        SammiError: something is there already.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.is_dir() and not any(folder.iterdir()):
        return folder
    if folder.exists() or folder.is_symlink():
        raise SammiError(f"{folder}: exists already; name a new folder or remove it first")
    return folder
