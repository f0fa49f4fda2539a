"""Reading single records of a prepared set in a bucket: as from disk, each once; bad paths."""

import pickle
import shutil
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest

from sammi_jax import object_store
from sammi_jax.data import bucket_records
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.input.augment import TrainCrop
from sammi_jax.data.input.pipeline import batch_stream, iterate, threads_for
from sammi_jax.data.prepare import write as prepare_module
from sammi_jax.data.prepare.record_offsets import OFFSETS_FILE
from sammi_jax.data.prepare.write import prepare, prepared_folder
from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path, list_objects
from tests.emulators import BUCKET, use
from tests.test_data_prepare import ade

NAME, COUNT = "ade20k_150", 10  # in shards of 4, 4 and 2


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """The folder of prepared sets."""
    top = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(prepare_module, "_PAIRS_PER_SHARD", 4)
        source = ade(top / "in", COUNT)
        prepare(NAME, source, top, splits=["validation"], allow_incomplete=True)
    return top


@pytest.fixture(params=["gs", "s3"])
def bucket(request, stores, disk, monkeypatch, tmp_path):
    """The same folder in a bucket, and an empty cache."""
    use(monkeypatch, stores[request.param])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data_dir = as_path(f"{request.param}://{BUCKET}/data")
    object_store.remove(data_dir)
    for path in prepared_folder(disk, NAME).iterdir():
        object_store.put(prepared_folder(data_dir, NAME) / path.name, path)
    return data_dir


def shards_of(bucket):
    folder = prepared_folder(bucket, NAME)
    return [folder / name for name in list_objects(folder) if "array_record" in name]


def source_of(data_dir):
    return open_dataset(NAME, data_dir=data_dir, record_by_record=True).source


def batches(source, start=0, **share):
    stream = batch_stream(source, [TrainCrop(4, 255)], batch_size=4, seed=3, **share)
    made = iterate(stream[:5], start, 0, threads_for(source))  # two epochs
    return list(made)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture
def downloads(monkeypatch):
    """The ranges that are downloaded."""
    found, read_range = [], bucket_records.read_range

    def note(path, begin, end, version):
        found.append((path.name, begin))
        return read_range(path, begin, end, version)

    monkeypatch.setattr(bucket_records, "read_range", note)
    return found


def test_batches_equal_those_of_the_disk_and_each_record_is_downloaded_once(
    bucket, disk, downloads, tmp_path
):
    expected = batches(source_of(disk))
    source = pickle.loads(pickle.dumps(source_of(bucket)))
    assert downloads == []
    assert_equal(batches(source), expected)
    assert len(set(downloads)) == COUNT + 3  # and the index of each shard
    del downloads[:]
    assert_equal(batches(source_of(bucket)), expected)
    assert downloads == []
    shutil.rmtree(tmp_path / "cache")
    assert_equal(batches(source_of(bucket), start=3), expected[3:])


def test_a_process_downloads_its_own_records(bucket, downloads):
    source, share = source_of(bucket), {"process": 1, "num_processes": 2}
    stream = batch_stream(source, [TrainCrop(4, 255)], batch_size=4, seed=3, **share)
    order = batch_stream(range(COUNT), [], batch_size=4, seed=3, **share)
    shards = source._records.data_source._shards
    wanted = set()
    for step in range(2):
        assert stream[step]["image"].shape == (2, 4, 4, 3)
        for index in order[step].tolist():
            shard = shards[index // 4]
            wanted |= {(shard.name, shard.offsets[index % 4]), (shard.name, shard.offsets[-1])}
    assert set(downloads) == wanted
    assert len(downloads) == len(wanted) < COUNT


def test_a_record_that_was_cut_off_in_the_cache_is_downloaded_again(bucket, disk, tmp_path):
    source, expected = source_of(bucket), source_of(disk)[1]
    np.testing.assert_array_equal(source[1]["image"], expected["image"])
    (file,) = tmp_path.glob("cache/sammi_jax/buckets/*/records/*-00000-of-*")
    content = file.read_bytes()
    offset = source._records.data_source._shards[0].offsets[1]
    file.write_bytes(content[: offset + 60] + bytes(len(content) - offset - 60))
    np.testing.assert_array_equal(source[1]["image"], expected["image"])
    assert file.read_bytes() == content


def test_a_set_without_offsets_is_downloaded_whole(bucket, disk, downloads):
    object_store.remove(prepared_folder(bucket, NAME) / OFFSETS_FILE)
    assert_equal(batches(source_of(bucket)), batches(source_of(disk)))
    assert downloads == []


def test_what_was_uploaded_is_not_downloaded(bucket, disk, monkeypatch):
    object_store.remove(bucket)
    prepare(NAME, disk / "in", bucket, splits=["validation"], allow_incomplete=True)
    monkeypatch.setattr(object_store, "get", None)
    assert len(open_dataset(NAME, data_dir=bucket).source) == COUNT


# --- bad paths ---


@pytest.mark.parametrize("record_by_record", [True, False])
def test_a_shard_that_is_missing_or_cut_off(bucket, record_by_record):
    shard = shards_of(bucket)[1]
    content = object_store.read_bytes(shard)
    object_store.put(shard, content[:-100])
    message = rf"00001-of-00003: has {len(content) - 100:,} bytes, not {len(content):,}; copy it"
    with pytest.raises(SammiError, match=message):
        open_dataset(NAME, data_dir=bucket, record_by_record=record_by_record)
    object_store.remove(shard)
    with pytest.raises(SammiError, match="00001-of-00003: is missing; copy it again, or prepare"):
        open_dataset(NAME, data_dir=bucket, record_by_record=record_by_record)


def test_a_shard_that_changes_while_it_is_read(bucket):
    source, (shard, *_) = source_of(bucket), shards_of(bucket)
    content = object_store.read_bytes(shard)
    source[0]
    for changed in (bytes(2000), bytes(len(content))):
        object_store.put(shard, changed)
        with pytest.raises(SammiError, match=r"-of-00003: has changed since .* start it again"):
            source[1]
    source[0]  # is in the cache
    object_store.remove(shard)
    with pytest.raises(SammiError, match="00000-of-00003: was deleted since"):
        source[1]


def test_google_is_asked_for_the_version_that_was_listed(stores, monkeypatch):
    """The emulator gives any version."""
    use(monkeypatch, stores["gs"])
    path = as_path(f"gs://{BUCKET}/object")
    object_store.put(path, b"content")
    files, asked = object_store._filesystem("gs"), {}
    monkeypatch.setattr(files, "cat_file", lambda *_, **options: asked.update(options) or b"nte")
    version = list_objects(path)[""].version
    assert object_store.read_range(path, 2, 5, version) == b"nte"
    assert asked == {"generation": version}
    assert version.isdigit()


def test_a_damaged_shard(bucket):
    shard = shards_of(bucket)[0]
    content = bytearray(object_store.read_bytes(shard))
    content[source_of(bucket)._records.data_source._shards[0].offsets[1] + 50] ^= 1
    object_store.put(shard, bytes(content))
    source = source_of(bucket)
    source[0]
    with pytest.raises(SammiError, match="00000-of-00003: is damaged: its records do not have"):
        source[1]
    with pytest.raises(SammiError, match="00000-of-00003: is damaged"):  # through Grain's threads
        batches(source)


def test_a_full_disk(bucket, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(ENOSPC, "No space left on device")

    source = source_of(bucket)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", full)
        with pytest.raises(SammiError, match=r"no space is left .* XDG_CACHE_HOME"):
            source[0]
    source[0]
    monkeypatch.setattr(object_store, "get", full)
    with pytest.raises(SammiError, match=r"no space is left .* XDG_CACHE_HOME"):
        open_dataset(NAME, data_dir=bucket)
    assert not list(tmp_path.rglob("*.partial"))
