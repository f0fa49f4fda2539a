"""Data sets by name, with everything that an evaluation needs to know about them."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from sammi_jax.data.bucket_records import BucketRecords, check_shards
from sammi_jax.data.openshapes import IGNORE_LABEL, NUM_EXAMPLES, VIEWS, OpenShapes, get_view
from sammi_jax.data.prepare.descriptions import split_lengths
from sammi_jax.data.prepare.known_sets import get_layout
from sammi_jax.data.prepare.record_offsets import OFFSETS_FILE, read_offsets
from sammi_jax.data.prepare.records import shard_prefix
from sammi_jax.data.prepare.write import prepared_folder
from sammi_jax.data.sources import FolderSource, PreparedSource, Stored
from sammi_jax.data.user_folder import read_user_folder
from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_hash, vocabulary_names
from sammi_jax.errors import SammiError
from sammi_jax.files import file_sizes, local_copy, read_json
from sammi_jax.object_store import AnyPath, as_path, exists, is_bucket

USER_FOLDER = "folder:"  # how the name of a user folder begins


@runtime_checkable
class Source(Protocol):
    """Random access: ``{"image": uint8 [H, W, 3], "label": int [H, W], "file_name": str}``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dataset:
    """One labeled set.

    Attributes:
        name: as users write it.
        source: its examples.
        class_names: the texts that a model is given.
        merge: the evaluated class of each text (several may share one).
        ignore_label: label of pixels that do not count.
        seen: evaluated classes that training may have seen; empty where that is not known.
        unseen: the others.
        palette: RGB of each evaluated class; None: the viewer chooses.
        background: the evaluated class that means "none of the others", if there is one.
        classes_of_interest: evaluated classes over which MESS averages separately; empty: all.
        domain: of MESS; None for other sets.
        column: name in the tables of papers.
        vocabulary_sha256: of the texts and their classes.
    """

    name: str
    source: Source
    class_names: tuple[str, ...]
    merge: tuple[int, ...]
    ignore_label: int
    seen: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()
    palette: tuple[tuple[int, int, int], ...] | None = None
    background: int | None = None
    classes_of_interest: tuple[int, ...] = ()
    domain: str | None = None
    column: str = ""
    vocabulary_sha256: str = ""

    @property
    def num_classes(self) -> int:
        """How many classes are evaluated."""
        return max(self.merge) + 1


def dataset_names() -> list[str]:
    """The names of OpenShapes, which `open_dataset` opens without preparation."""
    return [f"{view}/{split}" for view in VIEWS for split in NUM_EXAMPLES]


def open_dataset(
    name: str,
    num_examples: int | None = None,
    data_dir: AnyPath | None = None,
    record_by_record: bool = False,
) -> Dataset:
    """Open a data set.

    Args:
        name: ``VIEW/SPLIT`` of OpenShapes, such as ``os48/val_unseen``; ``NAME`` or ``NAME/SPLIT``
            of a prepared set, such as ``ade20k_150``; or ``folder:PATH``, a user folder
            (`sammi_jax.data.user_folder`).
        num_examples: use the first ones only.
        data_dir: the folder of the prepared sets.
        record_by_record: if ``data_dir`` is in a bucket, download each record when it is first read
            (`sammi_jax.data.bucket_records`), instead of all now.

    Raises:
        SammiError: there is no such data set, or it is not prepared.
    """
    if name.startswith(USER_FOLDER):
        return _open_user_folder(name, num_examples)
    if name in dataset_names():
        return _open_shapes(name, num_examples)
    if name.partition("/")[0] in vocabulary_names():
        return _open_prepared(name, num_examples, data_dir, record_by_record)
    is_path = False
    with suppress(OSError):  # too long for one
        is_path = Path(name).exists()
    if is_path:
        raise SammiError(f"{name}: is a path; for a set of your own give {USER_FOLDER}{name}")
    known = [*dataset_names(), *vocabulary_names()]
    near = get_close_matches(name, known, 1)
    if near:
        raise SammiError(f"{name}: no such data set; did you mean {near[0]}?")
    raise SammiError(f"{name}: no such data set; there are {', '.join(known)}")


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of class names and of the names and sizes of the files; empty: it has no files.

    Other content of the same size is not noticed: no file is read.
    """
    source = dataset.source
    if not isinstance(source, Stored):
        return ""
    what = [list(dataset.class_names), list(dataset.merge), list(source.files())]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _open_shapes(name: str, num_examples: int | None) -> Dataset:
    view_name, _, split = name.partition("/")
    view = get_view(view_name)
    return Dataset(
        name=name,
        source=OpenShapes(split, view, num_examples=num_examples),
        class_names=view.class_names,
        merge=view.merge,
        ignore_label=IGNORE_LABEL,
        seen=view.seen,
        unseen=view.unseen,
        column=name,
        vocabulary_sha256=vocabulary_hash(view.class_names, view.merge),
    )


def _open_user_folder(name: str, num_examples: int | None) -> Dataset:
    folder = local_copy(as_path(name.removeprefix(USER_FOLDER))).expanduser()
    found = read_user_folder(folder)
    texts = tuple(text.split(", ")[0] for text in found.classes)
    merge = tuple(range(len(texts)))
    return Dataset(
        name=name,
        source=FolderSource(folder, found.pairs, num_examples),
        class_names=texts,
        merge=merge,
        ignore_label=found.ignore_index,
        column=folder.resolve().name,
        vocabulary_sha256=vocabulary_hash(texts, merge),
    )


def _open_prepared(
    name: str, num_examples: int | None, data_dir: AnyPath | None, record_by_record: bool
) -> Dataset:
    set_name, _, split = name.partition("/")
    layout, vocabulary = get_layout(set_name), get_vocabulary(set_name)
    split = layout.split(split).name if split else layout.splits[0].name
    return Dataset(
        name=name,
        source=_prepared_source(set_name, split, num_examples, data_dir, record_by_record),
        class_names=vocabulary.texts,
        merge=vocabulary.merge,
        ignore_label=vocabulary.ignore_index,
        palette=vocabulary.palette,
        background=vocabulary.background,
        classes_of_interest=vocabulary.classes_of_interest,
        domain=vocabulary.domain,
        column=vocabulary.column,
        vocabulary_sha256=vocabulary.sha256,
    )


def _prepared_source(
    name: str,
    split: str,
    num_examples: int | None,
    data_dir: AnyPath | None,
    record_by_record: bool,
) -> PreparedSource:
    folder = find_prepared(name, data_dir)
    stored = prepared_folder(cast(AnyPath, data_dir), name)  # None raised an error
    shards = read_offsets(folder, shard_prefix(name, split))
    if shards:
        _check_length(folder, split, sum(len(offsets) - 1 for _, offsets in shards.values()))
        if record_by_record and is_bucket(stored):
            return PreparedSource(folder, split, num_examples, BucketRecords(stored, shards))
        check_shards(stored, shards, {file.name: n for file, n in file_sizes(stored).items()})
    return PreparedSource(find_prepared(name, data_dir, split), split, num_examples)


def _check_length(folder: Path, split: str, records: int) -> None:
    """Refuse a set whose two descriptions differ: TFDS would read a part of it, and say nothing."""
    described = split_lengths(folder).get(split)
    if described not in (None, records):
        raise SammiError(
            f"{folder}: dataset_info.json names {described} examples of {split}, "
            f"{OFFSETS_FILE} {records}; copy both again, or prepare the set again"
        )


def find_prepared(name: str, data_dir: AnyPath | None, split: str = "") -> Path:
    """The folder of a prepared set, made with the vocabulary of this package.

    Of a set in a bucket it is a copy in the cache of this machine (`sammi_jax.files.local_copy`).

    Args:
        name: of the set.
        data_dir: the folder of the prepared sets.
        split: whose records will be read; without one only the descriptions are there.

    Raises:
        SammiError: no ``data_dir``, not prepared, or prepared with other classes.
    """
    command = f"sammi datasets prepare {name} --source DIR --data-dir {data_dir or 'DIR'}"
    if data_dir is None:
        raise SammiError(f"{name}: name the folder of prepared sets (data_dir); made by: {command}")
    folder = prepared_folder(data_dir, name)
    if not exists(folder):
        raise SammiError(f"{name}: not prepared in {data_dir}; run: {command}")
    records = shard_prefix(name, split)
    folder = local_copy(folder, wanted=lambda n: n.endswith(".json") or n.startswith(records))
    if read_json(folder / "metadata.json").get("vocabulary_sha256") != get_vocabulary(name).sha256:
        raise SammiError(f"{folder}: prepared with other class names; remove it and run: {command}")
    return folder
