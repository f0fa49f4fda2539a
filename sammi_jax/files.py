"""Files and folders, here or in a bucket: checked JSON, and writing atomically.

What is written atomically gets its name only when it is complete and on the disk. If the process is
killed or the disk is full, what was there before stays. What goes to a bucket is written here first
and then uploaded (`sammi_jax.object_store`); what comes from one is downloaded into a cache.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Literal

from sammi_jax import object_store
from sammi_jax.errors import SammiError, one_line
from sammi_jax.object_store import UNFINISHED, AnyPath, PathLike, Stored, as_path

_DEEPEST = 100  # lists and objects of a JSON file in each other
# Folders that file servers, archivers and notebooks leave beside a user's files.
_LITTER = {"@eaDir", "__MACOSX", "lost+found"}
_DOWNLOADS = 8  # at the same time


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


def parse_json(text: bytes | str) -> Any:
    """A value of JSON's types, from text or UTF-8.

    Raises:
        ValueError: not JSON, or nested deeper than any file of a user: what walks through the value
            would overflow the stack.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    inner = [value]
    for _ in range(_DEEPEST):
        inner = [
            item
            for outer in inner
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not inner:
            return value
    raise ValueError("nested too deeply")


def read_json(path: AnyPath) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        SammiError: not readable, not JSON, or not an object.
    """
    try:
        value = parse_json(object_store.read_bytes(path))
    except (OSError, ValueError) as error:
        raise SammiError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise SammiError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: AnyPath, value: Any) -> None:
    """Write a value of JSON's types atomically, indented, in UTF-8."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # A path that is not UTF-8 holds lone surrogates: "backslashreplace" writes JSON's escapes.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def write_atomic(path: AnyPath, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8; parent folders are created."""
    content = content.encode() if isinstance(content, str) else content
    if not isinstance(path, Path):
        object_store.put(path, content)
        return
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


_AGAIN = "run the same command again (what was saved before is kept)"
_DISK_PROBLEMS = {
    errno.ENOSPC: f"the disk is full; free space on it, and {_AGAIN}",
    errno.EDQUOT: f"your quota on this disk is used up; free space on it, and {_AGAIN}",
    errno.EFBIG: "the file is larger than its disk or 'ulimit -f' allows; raise the limit, and "
    f"{_AGAIN}",
    errno.EROFS: "the disk is read-only; name a folder on another one",
    errno.EACCES: "permission denied; change its rights, or name another folder",
    errno.EPERM: "the system does not permit it; change its rights, or name another folder",
    errno.EIO: f"the disk fails (input/output error); have it checked, and {_AGAIN}",
    errno.ESTALE: f"the network disk is gone; mount it again, and {_AGAIN}",
    errno.ENOTDIR: "a part of this path is a file and no folder; name another folder",
    errno.EEXIST: "is a file where a folder has to be; name another folder",
}


def disk_problem(error: BaseException) -> str | None:
    """What is wrong with the disk, and the remedy; None: the error is another one.

    Args:
        error: of Python, or of a library that writes by itself and quotes the system's message.
    """
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        text = str(error)
        # The system's words are those of Python: "No space left on device" and so on.
        code = next((code for code in _DISK_PROBLEMS if os.strerror(code) in text), None)
    return None if code is None else _DISK_PROBLEMS.get(code)


@contextmanager
def write_errors(path: AnyPath, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the disk as one line with the remedy; other errors pass.

    Args:
        path: that is written; an error that names another file is about that one. In a bucket
            all errors pass (`object_store.bucket_errors`).
        temporary: under whose name it is written.
    """
    try:
        yield
    except SammiError:
        raise
    except Exception as error:
        problem = disk_problem(error) if isinstance(path, Path) else None
        if problem is None:
            raise
        where = str(path)
        if isinstance(error, OSError) and isinstance(error.filename, str):
            where = error.filename
        if temporary is not None:
            where = where.replace(temporary.name, path.name)
        raise SammiError(f"{where}: {problem}") from error


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[Path]:
    """A temporary path on this machine: the file written there replaces ``path`` at the end.

    On any error it is deleted instead. Parent folders are created.

    Raises:
        SammiError: the disk is full, read-only or broken.
    """
    if not isinstance(path, Path):
        with TemporaryDirectory(prefix="sammi-") as folder, write_errors(Path(folder)):
            yield Path(folder, path.name)
            object_store.put(path, Path(folder, path.name))
        return
    temporary = _temporary_sibling(path)
    with write_errors(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(folder: AnyPath, marker: str) -> Iterator[Path]:
    """A temporary folder on this machine that becomes ``folder`` at the end.

    On any error it is deleted instead. ``folder`` must be free (`check_destination`); its parents
    are created.

    Args:
        folder: on this machine or in a bucket.
        marker: the file that every reader requires: it is uploaded last.

    Raises:
        SammiError: the disk is full, read-only or broken.
    """
    if not isinstance(folder, Path):
        with TemporaryDirectory(prefix="sammi-") as parent, write_errors(Path(parent)):
            temporary = Path(parent, folder.name)
            temporary.mkdir()
            yield temporary
            upload_folder(temporary, folder, marker)
        return
    temporary = _temporary_sibling(folder)
    with write_errors(folder, temporary):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            rename_folder(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def upload_folder(
    source: Path, folder: AnyPath, marker: str, leave_out: Sequence[str] = ()
) -> None:
    """Upload a complete folder; what an upload that was cut off left there is deleted first.

    Args:
        source: on this machine.
        folder: in a bucket, free (`check_destination`).
        marker: the file that every reader requires: it is uploaded last.
        leave_out: names of files directly in ``source`` that are not uploaded.

    Raises:
        SammiError: the bucket cannot be written to; the folder then counts as unfinished.
    """
    left = object_store.list_objects(folder)
    object_store.put(folder / UNFINISHED, b"")
    for name in left:
        if name != UNFINISHED:
            object_store.remove(folder / name)
    ours = {source / name for name in leave_out}
    files = [path for path in source.rglob("*") if path.is_file() and path not in ours]
    for file in sorted(files, key=lambda path: (path == source / marker, path)):
        object_store.put(folder / file.relative_to(source).as_posix(), file)
    object_store.remove(folder / UNFINISHED)


def is_complete(folder: AnyPath) -> bool:
    """Whether a folder exists, and no upload into it was cut off."""
    return object_store.exists(folder) and (
        isinstance(folder, Path) or not object_store.exists(folder / UNFINISHED)
    )


def file_sizes(folder: AnyPath) -> dict[AnyPath, int]:
    """The files directly in a folder, ordered, and their bytes."""
    if isinstance(folder, Path):
        return {path: path.stat().st_size for path in sorted(folder.iterdir())}
    found = object_store.list_objects(folder, depth=1)
    return {folder / name: stored.size for name, stored in found.items()}


def local_copy(
    path: AnyPath,
    *,
    depth: Literal[1] | None = None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Path:
    """The path itself; of one in a bucket its copy in the cache of this machine.

    What is in the cache already is not downloaded again. A changed object gets another copy. Files
    have the times of their objects.

    Args:
        path: of a file or folder.
        depth: 1 for the files directly in the folder; None for all below it.
        wanted: which files, by their names below ``path``.

    Raises:
        SammiError: there is no such object, the folder is not complete, the bucket cannot be read,
            or the disk is full.
    """
    if isinstance(path, Path):
        return path
    found = object_store.list_objects(path, depth)
    if not found:
        bucket = "/".join(str(path).split("/")[:3])
        raise SammiError(f"{path}: no such file or folder in the bucket {bucket}")
    if UNFINISHED in found:
        raise SammiError(f"{path}: is not complete; run the command that writes it again")
    top = cached_folder(path, found)

    def fetch(name: str) -> None:
        with atomic_file(top / name) as temporary, full_disk(top):
            object_store.get(path / name if name else path, temporary)
            os.utime(temporary, (found[name].modified, found[name].modified))

    missing = [
        name
        for name, stored in found.items()
        if wanted(name)
        and not ((top / name).is_file() and (top / name).stat().st_size == stored.size)
    ]
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        try:
            for _ in pool.map(fetch, missing):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return top


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A full disk as one line, where the cache of buckets is written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SammiError(
            f"{folder}: no space is left for the copy of what is in the bucket; delete old copies "
            f"in {_cache_folder()}, or set XDG_CACHE_HOME to a folder of a larger disk"
        ) from error


def keep_copy(source: Path, folder: AnyPath) -> None:
    """Move a folder that was just uploaded to where `local_copy` looks for the copy of it.

    Args:
        source: on this machine.
        folder: in a bucket, with the same content.
    """
    top = cached_folder(folder, object_store.list_objects(folder))
    top.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(top, ignore_errors=True)
    rename_folder(source, top)


def cached_folder(path: AnyPath, found: dict[str, Stored]) -> Path:
    """Where on this machine a copy of objects lies; of changed ones it lies elsewhere.

    Args:
        path: in a bucket.
        found: the objects there.
    """
    key = hashlib.sha256(repr((str(path), found)).encode()).hexdigest()[:16]
    return _cache_folder() / key / path.name


def staging_folder(folder: AnyPath) -> Path:
    """Where on this machine a large folder of a bucket is made, before it is uploaded.

    It is the same in every call, so that what was interrupted can be resumed.
    """
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return _cache_folder() / f"{key}.partial" / folder.name


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "sammi_jax", "buckets")


class AppendedFile:
    """A text file to which lines are added; each is on the disk, or in the bucket, at once.

    In a bucket, where nothing can be added to an object, the whole file is written each time.
    """

    def __init__(self, path: AnyPath):
        self._path, self._text = path, ""
        self._file: IO[bytes] | None = None
        if isinstance(path, Path):
            with write_errors(path):
                self._file = path.open("ab", buffering=0)  # nothing is left to be written later
        elif object_store.exists(path):
            self._text = object_store.read_bytes(path).decode()

    def write(self, line: str) -> None:
        """Add a line.

        Raises:
            SammiError: the disk is full, or the bucket cannot be written to; of the line a part
                may be there.
        """
        if self._file is not None:
            with write_errors(self._path):
                rest = line.encode()
                while rest:  # a disk that is nearly full takes a part, and refuses the next
                    rest = rest[self._file.write(rest) :]
        else:
            self._text += line
            object_store.put(self._path, self._text.encode())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


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
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_destination(folder: PathLike) -> AnyPath:
    """The absolute path of a folder that is to be created.

    In a bucket a folder is also free where an upload into it was cut off.

    Raises:
        SammiError: something is there already, other than an empty folder; or nothing can be
            written there; or the bucket cannot be read.
    """
    folder = object_store.absolute(as_path(folder))
    if not isinstance(folder, Path):
        found = object_store.list_objects(folder)
        is_free = not found or UNFINISHED in found
    elif folder.is_dir():
        is_free = not any(folder.iterdir())
    else:
        is_free = not (folder.exists() or folder.is_symlink())
    if not is_free:
        raise SammiError(f"{folder}: exists already; name a new folder or remove it first")
    if isinstance(folder, Path):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise SammiError(
                f"{there}: cannot be written to (no folder, without the right, or on a disk that "
                "is read-only); name a folder elsewhere"
            )
    return folder
