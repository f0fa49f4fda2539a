"""Where each record lies in an ArrayRecord file, so that one can be read without the others.

ArrayRecord files of group size 1 are Riegeli files: a signature, one chunk for each record, and
chunks that index them. Only the headers of the chunks are read here, from a file of this machine.
Source: google/riegeli@master doc/riegeli_records_file_format.md.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from sammi_jax.errors import SammiError
from sammi_jax.files import read_json, write_json

OFFSETS_FILE = "record_offsets.json"
_BLOCK, _BLOCK_HEADER = 1 << 16, 24  # bytes; every block begins with a header, amid a chunk as well
_CHUNK_HEADER = struct.Struct(
    "<QQQQQ"
)  # hash, data size, data hash, type and records, decoded size
_RECORDS = ord("r")


def record_offsets(path: Path, num_records: int) -> list[int]:
    """The offset in bytes of each record's chunk, and the end of the last one.

    Args:
        path: of a complete ArrayRecord file of group size 1.
        num_records: that it holds.
    """
    offsets: list[int] = []
    at = 0
    with path.open("rb") as file:
        while len(offsets) < num_records:
            _, data_size, _, kind, _ = _CHUNK_HEADER.unpack(_read(file, at, _CHUNK_HEADER.size))
            if kind & 255 == _RECORDS:
                offsets.append(at)
            at = _end(at, _CHUNK_HEADER.size + data_size)
    return [*offsets, at]


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    content = b""
    while size:
        if at % _BLOCK == 0:
            at += _BLOCK_HEADER
        file.seek(at)
        part = file.read(min(size, _BLOCK - at % _BLOCK))
        content, at, size = content + part, at + len(part), size - len(part)
    return content


def _end(begin: int, size: int) -> int:
    """Where a chunk of ``size`` bytes ends, the headers of blocks within it counted."""
    block, within = divmod(begin, _BLOCK)
    # As if the file had no block headers: position among the bytes of chunks alone.
    plain = block * (_BLOCK - _BLOCK_HEADER) + max(within - _BLOCK_HEADER, 0) + size
    full, rest = divmod(plain - 1, _BLOCK - _BLOCK_HEADER)  # the last byte of the chunk
    return full * _BLOCK + _BLOCK_HEADER + rest + 1


def write_offsets(folder: Path, shards: dict[Path, int]) -> None:
    """Write `OFFSETS_FILE`: size and `record_offsets` of each shard, by its file name.

    Args:
        folder: of a prepared set.
        shards: its files, and how many records each holds.
    """
    found = {
        path.name: {"bytes": path.stat().st_size, "offsets": record_offsets(path, number)}
        for path, number in shards.items()
    }
    write_json(folder / OFFSETS_FILE, found)


def read_offsets(folder: Path, names: str) -> dict[str, tuple[int, Sequence[int]]] | None:
    """Size and `record_offsets` of each shard, in order; None: the set was made without them.

    Args:
        folder: of a prepared set.
        names: how the shards' names begin.

    Raises:
        SammiError: the file is damaged.
    """
    file = folder / OFFSETS_FILE
    if not file.exists():
        return None
    found: dict[str, Any] = read_json(file)
    shards = {name: shard for name, shard in sorted(found.items()) if name.startswith(names)}
    if not all(map(_is_shard, shards.values())):
        raise SammiError(f"{file}: damaged; prepare the set again")
    return {name: (shard["bytes"], shard["offsets"]) for name, shard in shards.items()}


def _is_shard(shard: Any) -> bool:
    """Whether a value of JSON's types is what `write_offsets` writes of a shard."""
    if not isinstance(shard, dict) or not isinstance(shard.get("offsets"), list):
        return False
    numbers = [0, *shard["offsets"], shard.get("bytes")]
    if len(numbers) < 3 or any(type(number) is not int for number in numbers):
        return False
    return all(first <= second for first, second in pairwise(numbers))
