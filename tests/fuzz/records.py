"""Prepared sets: the descriptions that TFDS reads, and the records themselves."""

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import strategies as st

from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.prepare.examples import Example
from sammi_jax.data.prepare.pixels import png_bytes
from sammi_jax.data.prepare.record_offsets import write_offsets
from sammi_jax.data.prepare.records import shard_path, write_metadata, write_shard
from sammi_jax.data.vocabulary import get_vocabulary
from tests.fuzz.guard import check
from tests.fuzz.mutate import hostile_json, mutated
from tests.fuzz.target import Target, write

_NAME, _SPLIT = "pascal_context_59", "val"
_SHARD = shard_path(Path(), _NAME, _SPLIT, 0, 1).name
_DESCRIPTIONS = ("dataset_info.json", "features.json", "metadata.json", "record_offsets.json")


@cache
def _valid() -> dict[str, bytes]:
    """The files of a prepared set of three examples."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), np.uint8)
    examples = [
        Example(f"{number}.png", png_bytes(image), image[..., 0] % 59)
        for number, image in enumerate(pixels)
    ]
    vocabulary = get_vocabulary(_NAME)
    metadata = {
        "title": vocabulary.title,
        "home": vocabulary.home,
        "licence": vocabulary.licence,
        "vocabulary_sha256": vocabulary.sha256,
    }
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, _SHARD)
        write_shard(shard, examples, vocabulary.label_dtype)
        write_offsets(Path(folder), {shard: len(examples)})
        shards = {_SPLIT: {shard: len(examples)}}
        write_metadata(Path(folder), _NAME, shards, vocabulary.label_dtype, metadata)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def _records() -> list[bytes]:
    """The valid records, serialized."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _SHARD)
        path.write_bytes(_valid()[_SHARD])
        reader = ArrayRecordReader(os.fspath(path))
        found = reader.read_all()
        reader.close()
    return found


@st.composite
def _files(draw: st.DrawFn) -> dict[str, bytes]:
    """One file of the set that is not as it was written; at times it is empty."""
    name = draw(st.sampled_from([_SHARD, _SHARD, *_DESCRIPTIONS]))
    if not draw(st.integers(0, 30)):
        return {name: b""}
    content = _valid()[name]
    if name == _SHARD:
        return {name: draw(mutated([content]))}
    return {name: draw(hostile_json([json.loads(content)]))}


def _read(files: dict[str, bytes], folder: Path) -> Any:
    write(folder / _NAME / "1.0.0", {**_valid(), **files})

    def read() -> Any:
        source = open_dataset(_NAME, data_dir=folder).source
        return [(source[i], source.glance(i)) for i in range(min(len(source), 4))]  # type: ignore[attr-defined]

    return check(read, str(folder), own=(folder,))


def _read_records(records: list[bytes], folder: Path) -> Any:
    """Examples of any content, whose hashes are right."""
    shard = folder / _SHARD
    writer = ArrayRecordWriter(os.fspath(shard), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    write_offsets(folder, {shard: len(records)})
    files = {name: (folder / name).read_bytes() for name in (_SHARD, "record_offsets.json")}
    return _read(files, folder)


TARGETS = [
    Target("prepared_set", _files, _read, 10_000),
    Target(
        "prepared_records",
        lambda: st.lists(mutated(_records()), min_size=3, max_size=3),
        _read_records,
        4000,
    ),
]
