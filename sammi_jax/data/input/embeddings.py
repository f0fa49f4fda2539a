"""SAM's image embeddings of a training set on disk: ``cache.json`` and ``embeddings.npy``.

SAM is frozen, so where no example changes from epoch to epoch its image encoder gives the same
embedding every time. A cache is one folder:

    cache.json        whose embeddings these are: `CacheInfo`
    embeddings.npy    [n, g, g, c] float16 or float32, C order; row i belongs to example i

The folder gets its name when it is complete. Until then it is called ``.NAME.partial`` and also
holds ``progress.json`` with the number of finished rows, from which the same command resumes.
"""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np

from sammi_jax.config.fields import from_dict, to_dict
from sammi_jax.config.model import SamConfig, check_sizes
from sammi_jax.errors import SammiError, one_line, reading
from sammi_jax.files import (
    check_destination,
    local_copy,
    read_json,
    rename_folder,
    staging_folder,
    upload_folder,
    write_errors,
    write_json,
)
from sammi_jax.locks import exclusive
from sammi_jax.object_store import PathLike, as_path
from sammi_jax.typing import Float, NpArray

FORMAT = 1
INFO_FILE, ROWS_FILE, PROGRESS_FILE = "cache.json", "embeddings.npy", "progress.json"
EMBEDDINGS = "sam_embeddings"  # the examples' name for a row
_COMMAND = "sammi cache --config FILE --out DIR"
_PROBES = 8  # images whose pixels are compared
_UNREADABLE = {"sam_sha256": "another SAM's weights", "pixels_sha256": "other images"}


@dataclass(frozen=True)
class CacheInfo:
    """Whose embeddings a cache holds.

    Attributes:
        format: of the folder.
        sam: sizes of the SAM.
        compute_dtype: what the encoder's products were computed in.
        data: name of the training set.
        preprocessing: what was done to its images.
        image_size: side of the square images, in pixels, before they are resized for SAM.
        num_examples: size of the training set.
        sam_sha256: of the image encoder's parameters, by path.
        pixels_sha256: of the pixels of a few images (`pixels_digest`).
        dtype: of the rows.
    """

    format: int
    sam: SamConfig
    compute_dtype: str
    data: str
    preprocessing: str
    image_size: int
    num_examples: int
    sam_sha256: str
    pixels_sha256: str
    dtype: Literal["float16", "float32"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the embeddings: ``(n, g, g, c)``."""
        return (self.num_examples, self.sam.grid_size, self.sam.grid_size, self.sam.out_channels)


def pixels_digest(image: Callable[[int], NpArray], num_examples: int) -> str:
    """SHA-256 of the pixels of up to 8 images, spread evenly over the set.

    Args:
        image: the pixels of an example, by its index.
        num_examples: size of the set.
    """
    total = hashlib.sha256()
    for index in np.unique(np.linspace(0, num_examples - 1, _PROBES).astype(int)):
        pixels = image(int(index))
        total.update(f"{index} {pixels.shape} {pixels.dtype} ".encode())
        total.update(np.ascontiguousarray(pixels).tobytes())
    return total.hexdigest()


def check_same(folder: Path, found: CacheInfo, wanted: CacheInfo, mend: str) -> None:
    """Check that a cache belongs to an experiment; the type of its rows does not matter.

    Args:
        folder: of the cache, for the message.
        found: what the cache holds.
        wanted: what the experiment needs.
        mend: what to do about a difference, for the message.

    Raises:
        SammiError: they differ; the first difference is named.
    """
    theirs, ours = to_dict(found), to_dict(wanted)
    for name in ours:
        if name == "dtype" or theirs[name] == ours[name]:
            continue
        what = f"{name} {theirs[name]!r}, not {ours[name]!r}"
        if name == "sam":
            field = next(key for key in ours[name] if theirs[name][key] != ours[name][key])
            what = f"sam.{field} {theirs[name][field]!r}, not {ours[name][field]!r}"
        raise SammiError(
            f"{folder}: holds the embeddings of another experiment "
            f"({_UNREADABLE.get(name, what)}); {mend}"
        )


class SamCache:
    """The rows of a finished cache, memory-mapped.

    Raises:
        SammiError: no such folder, not a cache, or one that is damaged.
    """

    def __init__(self, folder: PathLike):
        self.folder = local_copy(as_path(folder)).expanduser()
        if not self.folder.is_dir():
            raise SammiError(f"{self.folder}: no such folder; a cache is made by '{_COMMAND}'")
        self.info = _read_info(self.folder)
        self._rows = _open_rows(self.folder, self.info)

    def __reduce__(self) -> tuple[type["SamCache"], tuple[Path]]:
        return SamCache, (self.folder,)  # a worker maps the file again: no row is copied

    def __getitem__(self, index: SupportsIndex) -> Float[NpArray, "g g c"]:
        """The embedding of one example, read from the disk."""
        return np.array(self._rows[index])


@dataclass(frozen=True)
class WithEmbeddings:
    """A source whose examples also hold their embedding, as ``sam_embeddings``."""

    source: Any
    cache: SamCache

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The example of that index; IndexError beyond the end."""
        return {**self.source[index], EMBEDDINGS: self.cache[index]}


def _read_info(folder: Path) -> CacheInfo:
    file = folder / INFO_FILE
    if not file.exists():
        raise SammiError(f"{folder}: has no {INFO_FILE}; a cache is made by '{_COMMAND}'")
    values = read_json(file)
    if values.get("format") != FORMAT:
        raise SammiError(f"{folder}: format {values.get('format')!r}, not {FORMAT}; make it again")
    try:
        found = from_dict(CacheInfo, values)
        check_sizes(found.sam)
        return found
    except SammiError as error:
        raise SammiError(
            f"{file}: {one_line(error)}; remove the folder and make it again"
        ) from error


def _open_rows(folder: Path, info: CacheInfo) -> NpArray:
    """The rows, memory-mapped."""
    file, mend = folder / ROWS_FILE, f"remove the folder and make it again: {_COMMAND}"
    with reading(file, mend, "missing, damaged or cut short"):
        rows = np.lib.format.open_memmap(file, mode="r")
    if not isinstance(rows, np.ndarray):
        raise SammiError(f"{file}: an archive, not an array; {mend}")
    if rows.shape != info.shape or rows.dtype != info.dtype:
        raise SammiError(
            f"{file}: holds {rows.shape} {rows.dtype}, but {INFO_FILE} says {info.shape} "
            f"{info.dtype}; {mend}"
        )
    return rows


class CacheWriter:
    """Writes the rows of a cache.

    The file is written, not memory-mapped: where a file is mapped, a full disk kills the process
    instead of raising an error.

    Attributes:
        done: how many rows are on the disk.
    """

    def __init__(self, folder: Path, info: CacheInfo):
        self._folder, self._info = folder, info
        self.done = self._resume() if (folder / INFO_FILE).exists() else 0
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ROWS_FILE
        if not self.done:
            np.lib.format.open_memmap(file, mode="w+", dtype=info.dtype, shape=info.shape)
            write_json(folder / INFO_FILE, to_dict(info))
        self._offset = file.stat().st_size - num_bytes(info)  # of the first row
        self._file = file.open("r+b")

    def _resume(self) -> int:
        mend = "it is unfinished: remove it, or finish it with the configuration it was begun with"
        found = _read_info(self._folder)
        check_same(self._folder, found, self._info, mend)
        if found.dtype != self._info.dtype:
            raise SammiError(f"{self._folder}: has rows of {found.dtype}; {mend}")
        progress = self._folder / PROGRESS_FILE
        if not progress.exists():
            return 0
        _open_rows(self._folder, found)  # raises an error if the file was cut short
        rows = read_json(progress).get("rows", 0)
        if not isinstance(rows, int) or not 0 <= rows <= found.num_examples:
            raise SammiError(f"{progress}: says that {rows!r} rows are done; {mend}")
        return rows

    def write(self, rows: Float[NpArray, "n g g c"], start: int) -> None:
        """Write rows.

        Args:
            rows: embeddings of consecutive examples.
            start: index of the first.

        Raises:
            SammiError: a value is not finite in the file's type.
        """
        with np.errstate(over="ignore"):
            rows = rows.astype(self._info.dtype)
        if not np.isfinite(rows).all():
            raise SammiError(
                f"an embedding of the examples {start} to {start + len(rows) - 1} is not finite in "
                f"{self._info.dtype}; write the cache with --dtype float32, or look at the SAM"
            )
        self._file.seek(self._offset + start * rows[0].nbytes)
        self._file.write(np.ascontiguousarray(rows).tobytes())

    def save(self, done: int) -> None:
        """Make sure that the rows before ``done`` are on the disk: a later run resumes there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self._folder / PROGRESS_FILE, {"rows": done})
        self.done = done

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def writing_cache(folder: PathLike, info: CacheInfo) -> Generator[CacheWriter]:
    """Make a cache, or resume one that was interrupted; it gets its name at the end.

    Args:
        folder: of the cache, which does not exist yet.
        info: what it will hold.

    Raises:
        SammiError: the folder exists already, another cache is unfinished there, another process
            is making it, the disk has too little room, or rows are missing at the end.
    """
    folder = check_destination(folder)
    if isinstance(folder, Path):
        partial = folder.with_name(f".{folder.name}.partial")
    else:
        partial = staging_folder(folder)
    with exclusive(partial.with_name(f"{partial.name}.lock"), folder), write_errors(partial):
        check_destination(folder)  # another process may have made it meanwhile
        with closing(CacheWriter(partial, info)) as writer:
            _check_space(partial.parent, info, writer.done)
            yield writer
        if writer.done != info.num_examples:
            raise SammiError(f"{partial}: {writer.done} of {info.num_examples} rows are written")
        if not isinstance(folder, Path):
            upload_folder(partial, folder, INFO_FILE, leave_out=[PROGRESS_FILE])
            shutil.rmtree(partial)
            return
        rename_folder(partial, folder)
        (folder / PROGRESS_FILE).unlink()  # last: if the process is killed before, no row is lost


def _check_space(where: Path, info: CacheInfo, done: int) -> None:
    needed = num_bytes(info) * (info.num_examples - done) // info.num_examples
    free = shutil.disk_usage(where).free
    if needed > free:
        raise SammiError(
            f"{where}: the cache needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "name another disk, or set data.num_examples"
        )


def num_bytes(info: CacheInfo) -> int:
    """Size of all rows."""
    return math.prod(info.shape) * np.dtype(info.dtype).itemsize
