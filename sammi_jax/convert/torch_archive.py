"""The ZIP archives of PyTorch: checked before PyTorch reads them, and TorchScript's without it.

Loading a TorchScript archive (OpenAI's CLIP files) with PyTorch runs the code in it. Here only its
numbers are read.
"""

import ast
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sammi_jax.convert.pickles import Record, View, read_pickle

_LOCAL_HEADER = 30  # bytes before a member's name
_MOST_SOURCE = 2**24  # bytes of one of TorchScript's files of code, which alone are compressed
_MOST_MODULES = 100_000
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_LISTS = re.compile(r"^  __(?:parameters|buffers)__ = (\[[^\]\n]*\])$", re.MULTILINE)


class Archive:
    """The members of an archive.

    Attributes:
        path: of its file.
        size: bytes of the file.
        members: by their names without the folder that all of them are in.

    Raises:
        Exception: it is damaged, of any type.
        ValueError: a member is compressed, other than code, or two have the same name.
    """

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        self.members = {member.filename.partition("/")[2]: member for member in members}
        if len(self.members) < len(members):
            raise ValueError("two members have the same name")
        if sum(member.compress_size for member in members) > self.size:
            raise ValueError("its members are larger than the file")
        for name, member in self.members.items():
            packed = member.compress_type != zipfile.ZIP_STORED
            if packed and not (name.startswith("code/") and self.is_script):
                raise ValueError(f"{name} is compressed, which PyTorch never does")
            if not packed and member.file_size != member.compress_size:
                raise ValueError(f"{name} has two sizes")

    @property
    def is_script(self) -> bool:
        """Whether it is TorchScript's."""
        return "constants.pkl" in self.members and any(n.startswith("code/") for n in self.members)

    def read(self, name: str) -> bytes:
        """The bytes of a member: what is not code is no larger than the file."""
        member = self.members[name]
        if member.compress_type != zipfile.ZIP_STORED and member.file_size > _MOST_SOURCE:
            raise ValueError(f"{name} has {member.file_size:,} bytes when it is unpacked")
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            return file.read(member.file_size)

    def offset(self, name: str) -> int:
        """Where the bytes of a member that is not compressed begin."""
        member = self.members[name]
        with self.path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise ValueError(f"{name} has no header")
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return member.header_offset + _LOCAL_HEADER + sum(lengths)


def read_script(archive: Archive) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters and buffers of a TorchScript archive, as its state dict has them.

    Raises:
        ForbiddenNameError: it names what no module needs.
        Exception: it is damaged, of any type.
    """
    if archive.members.get("byteorder") and archive.read("byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    root = read_pickle(BytesIO(archive.read("data.pkl")), archive.size, script=True)
    numbers = np.memmap(archive.path, np.uint8, "r")
    sources: dict[str, dict[str, set[str]]] = {}
    for path, view in _views(archive, root, sources):
        yield path, _array(archive, view, numbers)


def _views(archive: Archive, root: Any, sources: dict[str, Any]) -> Iterator[tuple[str, View]]:
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        if seen > _MOST_MODULES:
            raise ValueError(f"has more than {_MOST_MODULES:,} modules")
        if not isinstance(module, Record) or not isinstance(module.state, dict):
            continue
        stored = _stored(archive, module.name, sources)
        inner = []
        for name, value in module.state.items():
            if isinstance(value, View) and (stored is None or name in stored):
                yield f"{prefix}{name}", value
            elif isinstance(value, Record):
                inner.append((f"{prefix}{name}.", value))
        waiting += reversed(inner)


def _stored(archive: Archive, name: str, sources: dict[str, Any]) -> set[str] | None:
    """Which attributes of a class are parameters or buffers; None: its source does not say."""
    place, _, title = name.rpartition(".")
    if place not in sources:
        file = f"code/{place.replace('.', '/')}.py"
        text = archive.read(file).decode() if file in archive.members else ""
        parts = _CLASS.split(text)
        sources[place] = {
            title: {name for found in _LISTS.findall(body) for name in ast.literal_eval(found)}
            for title, body in zip(parts[1::2], parts[2::2], strict=True)
            if _LISTS.search(body)
        }
    return sources[place].get(title)


def _array(archive: Archive, view: View, numbers: Any) -> np.ndarray:
    storage = view.storage
    if not storage.dtype:
        raise ValueError("has numbers of an unknown type")
    dtype = np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)
    name = f"data/{storage.key}"
    start, size = archive.offset(name), archive.members[name].file_size
    if storage.numel * dtype.itemsize > size or start + size > archive.size:
        raise ValueError(f"{name} is smaller than its tensors")
    strides = [step * dtype.itemsize for step in view.strides]
    start += view.offset * dtype.itemsize
    return np.ndarray(view.shape, dtype, numbers, start, strides)
