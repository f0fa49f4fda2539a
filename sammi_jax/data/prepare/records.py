"""Examples in ArrayRecord files that TFDS reads, written without TensorFlow.

TFDS and array_record are imported inside the functions: they take seconds, and listing the
catalogue needs neither.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sammi_jax.data.prepare.descriptions import check_features
from sammi_jax.data.prepare.examples import Example, label_bytes
from sammi_jax.files import atomic_file

VERSION = "1.0.0"
_GROUP = "group_size:1"  # as TFDS writes: every record can be read alone


def shard_prefix(name: str, split: str) -> str:
    """How the names of a split's shards begin."""
    return f"{name}-{split}.array_record-"


def shard_path(folder: Path, name: str, split: str, number: int, total: int) -> Path:
    """The file name that TFDS expects of a shard."""
    return folder / f"{shard_prefix(name, split)}{number:05}-of-{total:05}"


def write_shard(path: Path, examples: Iterable[Example], label_dtype: type[np.number]) -> None:
    """Write one shard atomically.

    Args:
        path: of `shard_path`.
        examples: its records, in order.
        label_dtype: uint8 or uint16, for all labels of the set.
    """
    array_record = _array_record()
    serialize = _serializer(label_dtype)
    with atomic_file(path) as temporary:
        writer = array_record.ArrayRecordWriter(os.fspath(temporary), _GROUP)
        try:
            for example in examples:
                writer.write(serialize(example))
        finally:
            writer.close()


def count_records(path: Path) -> int:
    """How many records a shard holds."""
    reader = _array_record().ArrayRecordReader(os.fspath(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def read_record(path: Path, position: int) -> bytes | None:
    """One record of a shard, whose hashes are checked; None: it is not there, or damaged.

    Args:
        path: of the shard, which may lack other records.
        position: of the record in it.
    """
    options = "readahead_buffer_size:0,max_parallelism:0"
    reader = _array_record().ArrayRecordReader(
        os.fspath(path), options, file_reader_buffer_size=1 << 15
    )
    try:
        return reader.read([position])[0] if position < reader.num_records() else None
    except RuntimeError:
        return None
    finally:
        with suppress(RuntimeError):  # the same once more
            reader.close()


def has_index(path: Path, num_records: int) -> bool:
    """Whether a shard has its index, at its end; records may be missing."""
    try:
        return count_records(path) == num_records
    except RuntimeError:
        return False


def write_metadata(
    folder: Path,
    name: str,
    splits: Mapping[str, Mapping[Path, int]],
    label_dtype: type[np.number],
    metadata: Mapping[str, Any],
) -> None:
    """What TFDS needs to read the shards of ``folder``: dataset_info, features and metadata.

    Args:
        folder: holds the shards.
        name: of the data set.
        splits: the shards of each split, in order, and how many records each holds.
        label_dtype: as given to `write_shard`.
        metadata: kept with the data; ``title``, ``home`` and ``licence`` go to TFDS as well.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(shards.values()),
            num_bytes=sum(path.stat().st_size for path in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=epath.Path(folder),
                dataset_name=name,
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(label_dtype),
        split_infos=infos,
        version=VERSION,
        check_data=False,  # its check needs TensorFlow
        description=str(metadata["title"]),
        homepage=str(metadata["home"]),
        license=str(metadata["licence"]),
        metadata=tfds.core.MetadataDict(metadata),
        disable_shuffling=True,
    )


def open_records(folder: Path, split: str, records: Any = None) -> Any:
    """TFDS's random access to a split, its images as undecoded bytes.

    Args:
        folder: of a prepared set.
        split: one of its splits.
        records: random access to the serialized records; None: the shards in ``folder``.

    Raises:
        SammiError: `check_features`.
    """
    import tensorflow_datasets as tfds

    check_features(folder)
    undecoded: Any = tfds.decode.SkipDecoding  # a decorator hides its arguments
    decoders = {"image": undecoded(), "label": undecoded()}
    builder: Any = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split, decoders=decoders)
    if records is not None:
        source.data_source = records
    return source


def _array_record() -> Any:
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    return array_record_module


def _features(label_dtype: type[np.number]) -> Any:
    import tensorflow_datasets as tfds

    label = tfds.features.Image(shape=(None, None, 1), dtype=label_dtype, encoding_format="png")
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": label,
            "file_name": tfds.features.Text(),
        }
    )


def _serializer(label_dtype: type[np.number]) -> Any:
    from tensorflow_datasets.core import example_serializer

    features = _features(label_dtype)
    module: Any = example_serializer  # its abstract base hides the arguments
    serializer = module.ExampleSerializer(features.get_serialized_info())

    def serialize(example: Example) -> bytes:
        fields = {
            "image": example.image,
            "label": label_bytes(example),
            "file_name": example.file_name,
        }
        # Not serialize_example: a protobuf's map has another order in every process.
        message = serializer.get_tf_example(features.encode_example(fields))
        return message.SerializeToString(deterministic=True)

    return serialize
