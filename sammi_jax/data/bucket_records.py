"""Records of a prepared set in a bucket, each downloaded when it is first asked for.

ArrayRecord's reader opens files only. So each shard has a file in the cache of this machine, of the
shard's size and at first without content; a record is downloaded into its place there, which
`sammi_jax.data.prepare.record_offsets` knows, and read from there. The reader checks the hashes of
what it reads, which tells a record that is there from one that is not, or only in part. So nothing
needs to be locked: several processes may fill one file, and a record that was cut off is downloaded
again.
"""

import bisect
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import SupportsIndex

from sammi_jax.data.prepare.records import has_index, read_record
from sammi_jax.errors import SammiError
from sammi_jax.files import cached_folder, full_disk
from sammi_jax.object_store import AnyPath, Stored, list_objects, read_range


@dataclass(frozen=True)
class _Shard:
    """An object of the bucket, and where its records lie in it."""

    name: str
    stored: Stored
    offsets: Sequence[int]  # of each record, and the end of the last; what follows is the index


class BucketRecords:
    """The serialized records of one split, by their number.

    Args:
        folder: of the prepared set, in a bucket.
        shards: size and `record_offsets` of each shard, by its name.

    Raises:
        SammiError: a shard is missing or cut off, or the bucket cannot be read.
    """

    def __init__(self, folder: AnyPath, shards: dict[str, tuple[int, Sequence[int]]]):
        found = list_objects(folder, depth=1)
        check_shards(folder, shards, {name: stored.size for name, stored in found.items()})
        self._folder = folder
        self._shards = [_Shard(name, found[name], o) for name, (_, o) in shards.items()]
        self._cache = cached_folder(folder / "records", {s.name: s.stored for s in self._shards})
        self._ends = list(itertools.accumulate(len(s.offsets) - 1 for s in self._shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: SupportsIndex) -> bytes:
        """The record of that number.

        Raises:
            SammiError: the shard has changed or is damaged, the bucket cannot be read, or the disk
                is full.
        """
        number = operator.index(index)
        which = bisect.bisect_right(self._ends, number)
        shard = self._shards[which]
        position = number - (self._ends[which - 1] if which else 0)
        file = self._cache / shard.name
        record = read_record(file, position)
        if record is None:
            self._download(shard, file, *shard.offsets[position : position + 2])
            if not has_index(file, len(shard.offsets) - 1):  # it is the first one of its shard
                self._download(shard, file, shard.offsets[-1], shard.stored.size)
            record = read_record(file, position)
        if record is None:
            raise self._error(shard)
        return record

    def files(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of the shards, in order."""
        for shard in self._shards:
            yield shard.name, shard.stored.size

    def _download(self, shard: _Shard, file: Path, begin: int, end: int) -> None:
        """Put a part of a shard into its place in the file."""
        content = read_range(self._folder / shard.name, begin, end, shard.stored.version)
        if content is None:
            raise self._error(shard)
        with full_disk(self._cache):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            with file.open("r+b") as target:
                target.truncate(shard.stored.size)
                target.seek(begin)
                target.write(content)

    def _error(self, shard: _Shard) -> SammiError:
        """Why a record cannot be read."""
        path = self._folder / shard.name
        found = list_objects(path).get("")
        if found is None:
            what = "was deleted since this began to read it"
        elif found != shard.stored:
            what = "has changed since this began to read it"
        else:
            return SammiError(
                f"{path}: is damaged: its records do not have the hashes that were written with "
                "them; remove the folder and prepare the set again"
            )
        return SammiError(f"{path}: {what}; a run must not mix two versions: start it again")


def check_shards(
    folder: AnyPath, shards: dict[str, tuple[int, Sequence[int]]], found: dict[str, int]
) -> None:
    """Check that all shards of a split are there as they were written.

    Args:
        folder: that holds them, for the message.
        shards: size and `record_offsets` of each.
        found: the sizes of what is there, by name.

    Raises:
        SammiError: one is missing or has another size.
    """
    for name, (size, _) in shards.items():
        if found.get(name) == size:
            continue
        what = "is missing" if name not in found else f"has {found[name]:,} bytes, not {size:,}"
        raise SammiError(f"{folder / name}: {what}; copy it again, or prepare the set again")
