"""Prepares a set: writes the owner's files to a folder that TFDS reads, shard by shard.

Everything is written to ``DATA_DIR/NAME/1.0.0.partial``, which is renamed at the end: a folder
``DATA_DIR/NAME/1.0.0`` is complete. For a bucket, shards are written to this machine and uploaded.
An interrupted call resumes at the next shard. The same source gives the same bytes, interrupted or
not, in any number of processes.
"""

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sammi_jax.data.prepare.completeness import check_complete
from sammi_jax.data.prepare.examples import Example, make_examples
from sammi_jax.data.prepare.known_sets import get_layout
from sammi_jax.data.prepare.labels import LabelMap
from sammi_jax.data.prepare.layout import Layout, Split
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.prepare.pool import Tick, in_processes
from sammi_jax.data.prepare.record_offsets import write_offsets
from sammi_jax.data.prepare.records import (
    VERSION,
    count_records,
    shard_path,
    write_metadata,
    write_shard,
)
from sammi_jax.data.vocabulary import Vocabulary, get_vocabulary
from sammi_jax.errors import SammiError
from sammi_jax.files import (
    is_complete,
    keep_copy,
    read_json,
    rename_folder,
    staging_folder,
    upload_folder,
    write_errors,
    write_json,
)
from sammi_jax.locks import exclusive
from sammi_jax.object_store import AnyPath

_FORMAT = 1  # of what is stored: a folder of another format is not resumed
_PAIRS_PER_SHARD, _CUT_PAIRS_PER_SHARD = 256, 16  # an image that is cut gives many examples


@dataclass(frozen=True)
class _Work:
    """Everything that is to be written."""

    layout: Layout
    vocabulary: Vocabulary
    pairs: dict[str, list[Pair]]  # of each split
    complete: bool

    def shards(self, split: str) -> list[list[Pair]]:
        size = _PAIRS_PER_SHARD if self.layout.tile is None else _CUT_PAIRS_PER_SHARD
        pairs = self.pairs[split]
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]


def prepared_folder(data_dir: AnyPath, name: str) -> AnyPath:
    """The folder of a prepared set."""
    return data_dir / name / VERSION


def prepare(
    name: str,
    source: Path,
    data_dir: AnyPath,
    *,
    splits: Sequence[str] = (),
    allow_incomplete: bool = False,
    processes: int = 1,
) -> AnyPath:
    """Write a known set as a TFDS folder; what an interrupted call finished is kept.

    Args:
        name: of `sammi_jax.data.prepare.known_sets.LAYOUTS`.
        source: the folder with the owner's files, or its parent.
        data_dir: the folder of the prepared sets.
        splits: the owner's names; empty for all of them.
        allow_incomplete: accept another number of images than the set has, and images or labels
            that lack their partner, which are left out.
        processes: that write shards at the same time. With several of them, a script needs
            ``if __name__ == "__main__":``.

    Returns:
        The folder, for ``tfds.builder_from_directory``.

    Raises:
        SammiError: an unknown name, an incomplete source, a file that cannot be read, a label
            value that the set does not know, a set that is prepared already or by another process
            now, or a disk that is full or read-only.
    """
    layout, vocabulary = get_layout(name), get_vocabulary(name)
    folder = prepared_folder(data_dir, name)
    _check_free(folder, name)
    chosen = [layout.split(split) for split in splits] or list(layout.splits)
    work = _plan(layout, vocabulary, source, chosen, allow_incomplete)
    if isinstance(folder, Path):
        partial = folder.with_name(f"{VERSION}.partial")
    else:
        partial = staging_folder(folder)
    with exclusive(partial.with_name(f".{partial.name}.lock"), folder), write_errors(partial):
        _check_free(folder, name)  # another process may have prepared it meanwhile
        _begin(partial, _fingerprint(work))
        shards = {split: _write_split(partial, work, split, processes) for split in work.pairs}
        _finish(partial, folder, work, shards)
    return folder


def _check_free(folder: AnyPath, name: str) -> None:
    if is_complete(folder):
        raise SammiError(f"{folder}: prepared already; remove it to prepare {name} again")


def _plan(
    layout: Layout,
    vocabulary: Vocabulary,
    source: Path,
    splits: Sequence[Split],
    allow_incomplete: bool,
) -> _Work:
    pairs: dict[str, list[Pair]] = {}
    complete = True
    for split in splits:
        pairs[split.name], lacking = layout.pairs(source, split)
        problem = check_complete(layout, split, pairs[split.name], lacking)
        if problem and not allow_incomplete:
            raise SammiError(
                f"{source}: {vocabulary.name}/{split.name} is not complete: {problem}; copy the "
                "rest, or prepare what there is with --allow-incomplete"
            )
        if not pairs[split.name]:
            raise SammiError(f"{source}: {vocabulary.name}/{split.name} has no labeled image")
        complete = complete and not problem
    return _Work(layout, vocabulary, pairs, complete)


def _fingerprint(work: _Work) -> str:
    """Changes with the source files, the label mapping, or the format of what is stored."""
    digest = hashlib.sha256(f"{_FORMAT} {work.vocabulary!r} {work.complete}".encode())
    for split, pairs in work.pairs.items():
        for pair in pairs:
            files = (pair.image, *pair.labels)
            sizes = [path.stat().st_size for path in files]
            digest.update(f"{split} {pair.key} {sizes}\n".encode())
    return digest.hexdigest()


def _plan_file(partial: Path) -> Path:
    """What the shards of an unfinished folder are made of; it lies beside the folder."""
    return partial.with_name(f"{partial.name}.json")


def _begin(partial: Path, fingerprint: str) -> None:
    """Keep the folder of an earlier call on the same files; otherwise make an empty one."""
    plan = _plan_file(partial)
    if partial.exists():
        try:
            same = read_json(plan).get("fingerprint") == fingerprint
        except SammiError:
            same = False
        if same:
            return
        warnings.warn(
            f"{partial}: the source has changed since this was begun; starting again", stacklevel=2
        )
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_json(plan, {"fingerprint": fingerprint})


@dataclass(frozen=True)
class _Shard:
    """One file that is to be written. It is sent to other processes."""

    name: str  # of the set
    path: Path
    pairs: Sequence[Pair]


def _write_split(partial: Path, work: _Work, split: str, processes: int) -> dict[Path, int]:
    """Write the shards that do not exist yet, and return how many records each of all holds."""
    name, parts = work.vocabulary.name, work.shards(split)
    shards = [
        _Shard(name, shard_path(partial, name, split, number, len(parts)), pairs)
        for number, pairs in enumerate(parts)
    ]
    title = f"{name}/{split}"
    with tqdm(total=len(work.pairs[split]), unit="image", desc=title, disable=None) as bar:
        missing = [shard for shard in shards if not shard.path.exists()]
        bar.update(bar.total - sum(len(shard.pairs) for shard in missing))
        for _ in in_processes(_write_shard, missing, processes, bar.update):
            pass
    counts = {shard.path: count_records(shard.path) for shard in shards}
    if not sum(counts.values()):
        raise SammiError(f"{title}: every pixel of every label is ignored; check --source")
    return counts


def _write_shard(shard: _Shard, tick: Tick) -> None:
    layout, vocabulary = get_layout(shard.name), get_vocabulary(shard.name)
    examples = _examples(shard.pairs, layout, LabelMap(vocabulary), tick)
    write_shard(shard.path, examples, vocabulary.label_dtype)


def _examples(
    pairs: Sequence[Pair], layout: Layout, label_map: LabelMap, tick: Tick
) -> Iterator[Example]:
    for pair in pairs:
        yield from make_examples(pair, layout, label_map)
        tick(1)


def _finish(
    partial: Path, folder: AnyPath, work: _Work, shards: dict[str, dict[Path, int]]
) -> None:
    """Write the metadata, then give the folder its name.

    The plan goes last: a process that is stopped before leaves shards that another call takes over.
    """
    known = {path: count for counts in shards.values() for path, count in counts.items()}
    for path in partial.iterdir():
        if path not in known:  # what a killed process left of a shard or of the metadata
            path.unlink()
    vocabulary = work.vocabulary
    write_offsets(partial, known)
    write_metadata(partial, vocabulary.name, shards, vocabulary.label_dtype, _metadata(work))
    if isinstance(folder, Path):
        rename_folder(partial, folder)
    else:
        upload_folder(partial, folder, "dataset_info.json")
        keep_copy(partial, folder)
    _plan_file(partial).unlink()


def _metadata(work: _Work) -> dict[str, Any]:
    vocabulary = work.vocabulary
    return {
        "title": vocabulary.title,
        "home": vocabulary.home,
        "licence": vocabulary.licence,
        "source": vocabulary.source,
        "classes": list(vocabulary.classes),
        "merge": list(vocabulary.merge),
        "ignore_index": vocabulary.ignore_index,
        "vocabulary_sha256": vocabulary.sha256,
        "complete": work.complete,
    }
