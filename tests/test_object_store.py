"""Paths in buckets against emulators of Google's and Amazon's store; errors as one line."""

from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from sammi_jax import object_store
from sammi_jax.cli.main import main
from sammi_jax.config import SegmentConfig, TrainConfig
from sammi_jax.config.files import load_config
from sammi_jax.convert.api import convert
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.errors import SammiError
from sammi_jax.files import (
    AppendedFile,
    atomic_file,
    atomic_folder,
    check_destination,
    file_sizes,
    is_complete,
    local_copy,
    read_json,
    upload_folder,
    write_atomic,
    write_json,
)
from sammi_jax.object_store import (
    UNFINISHED,
    access_problem,
    as_path,
    is_bucket,
    list_objects,
    local_path,
)
from sammi_jax.text.vocabulary import parse_class_list
from sammi_jax.training.task import Task
from sammi_jax.training.tasks import make_task
from sammi_jax.weights.bundled import FOLDER
from sammi_jax.weights.model_folder import read_model
from tests.emulators import BUCKET, Line, refusing, use

# gcsfs sends files of some MB in one piece.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
DENIED = b'{"error": {"code": 403, "message": "no storage.objects.get"}}'
EXPIRED = b'{"error": {"code": 401, "message": "Request had invalid authentication credentials"}}'


def test_a_path_of_this_machine_stays_one():
    for text in ("runs/clip", "~/runs", "/", ".", "a:b", "folder:images", "c:/images"):
        assert as_path(text) == Path(text)
        assert local_path(text) == Path(text)
        assert not is_bucket(text)
    assert as_path(Path("runs")) == Path("runs")


@pytest.mark.parametrize("text", ["gs://b/a/c", "s3://b/a/c", "GS://b/a/c/"])
def test_a_path_of_a_bucket(text):
    path = as_path(text)
    assert isinstance(path, epath.Path)
    assert str(path) == text.lower().rstrip("/")
    assert is_bucket(text)
    assert is_bucket(path)
    assert as_path(Path(text.lower())) == path  # pathlib makes gs:/b/a/c of it
    assert object_store.shown(path) == str(path)
    assert object_store.absolute(path) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a", "ftp:// cannot be used; give a path of this machine, gs://BUCKET/PATH or"),
        ("https://host/a", "https:// cannot be used"),
        ("az://b/a", "az:// cannot be used"),
        ("file:///a", "write a path of this machine without file://"),
        ("gs://", r"names no bucket; give gs://BUCKET/PATH"),
        ("s3:///a", r"names no bucket; give s3://BUCKET/PATH"),
        ("gs://b/../c", "there is no '..' in a bucket"),
    ],
)
def test_urls_that_cannot_be_used(text, message):
    with pytest.raises(SammiError, match=message):
        as_path(text)


def test_a_client_that_is_missing(monkeypatch):
    monkeypatch.setattr(object_store, "find_spec", lambda name: None)
    with pytest.raises(SammiError, match=r"s3://b/a: needs the package s3fs: pip install"):
        as_path("s3://b/a")


COMMANDS = [
    "train --config openshapes_clip --workdir {}",
    "eval --config openshapes_catseg --datasets os48/val_seen --workdir {}",
    "eval --config openshapes_catseg --datasets ade20k_150 --workdir out --data-dir {}",
    "eval --config openshapes_catseg --datasets os48/val_seen --workdir out --model {}",
    "convert clip {} out",
    "convert clip openshapes_clip {}",
    "convert clip openshapes_clip out --tokenizer {}",
    "cache --config openshapes_sammi --out {}",
    "export {}",
    "inspect {}",
    "segment image.png --classes square --out {}",
    "segment image.png --classes square --out out --model {}",
    "segment {} --classes square --out out",
    "masks {} --out out",
    "datasets prepare ade20k_150 --source . --data-dir {}",
    "datasets show ade20k_150 --data-dir {}",
    "datasets draw os48/train --count 1 --out {}",
    "train --config openshapes_catseg --workdir out --set data.data_dir={}",
    "train --config openshapes_catseg --workdir out --set task.clip={}",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_raises_for_a_url_before_anything_is_made(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(command.format("ftp://host/a").split()) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "ftp://host/a: ftp:// cannot be used" in line
    assert list(tmp_path.iterdir()) == []


def test_files(bucket):
    file = bucket / "a" / "record.json"
    assert not object_store.exists(file)
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    assert object_store.exists(file)
    assert object_store.exists(file.parent)
    write_atomic(file, '{"a": 2}')
    assert read_json(file) == {"a": 2}
    with pytest.raises(SammiError, match="not readable as JSON"):
        read_json(bucket / "none.json")
    with atomic_file(file) as temporary:
        temporary.write_bytes(b"content")
    assert object_store.read_bytes(file) == b"content"
    with pytest.raises(KeyError):
        _fail_within(file)
    assert object_store.read_bytes(file) == b"content"
    object_store.move(bucket / "a", bucket / "b")
    assert list(list_objects(bucket)) == ["b/record.json"]
    assert list(list_objects(bucket / "b" / "record.json")) == [""]
    assert list_objects(bucket, depth=1) == {}


def _fail_within(file):
    with atomic_file(file) as temporary:
        temporary.write_bytes(b"other")
        raise KeyError


def test_lines_are_added(bucket):
    file = AppendedFile(bucket / "log.jsonl")
    file.write("one\n")
    assert object_store.read_bytes(bucket / "log.jsonl") == b"one\n"
    file.close()
    again = AppendedFile(bucket / "log.jsonl")
    again.write("two\n")
    again.close()
    assert object_store.read_bytes(bucket / "log.jsonl") == b"one\ntwo\n"


def _write(folder):
    with atomic_folder(folder, "config.json") as new:
        for name in ("a.txt", "config.json", "z/b.txt"):
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(name)


def test_a_folder_is_complete_with_its_marker(bucket, monkeypatch):
    folder, put = check_destination(bucket / "model"), object_store.put
    written = []

    def put_until(path, content):
        if len(written) == stop:
            raise SammiError("the network ended")
        put(path, content)
        written.append(path.name)

    monkeypatch.setattr(object_store, "put", put_until)
    for stop in range(4):
        written.clear()
        with pytest.raises(SammiError, match="ended"):
            _write(folder)
        assert not object_store.exists(folder / "config.json")
        assert not is_complete(folder)
        assert check_destination(folder) == folder
        if stop:
            with pytest.raises(SammiError, match="is not complete; run the command"):
                local_copy(folder)
    stop = None
    written.clear()
    _write(folder)
    assert written == [UNFINISHED, "a.txt", "b.txt", "config.json"]
    assert is_complete(folder)
    assert sorted(list_objects(folder)) == ["a.txt", "config.json", "z/b.txt"]
    assert [path.name for path in file_sizes(folder)] == ["a.txt", "config.json"]
    with pytest.raises(SammiError, match="exists already; name a new folder"):
        check_destination(folder)


def test_copies_in_the_cache(bucket, monkeypatch):
    _write(bucket / "model")
    get, fetched = object_store.get, []
    monkeypatch.setattr(
        object_store, "get", lambda path, file: (fetched.append(path.name), get(path, file))
    )
    copy = local_copy(bucket / "model", depth=1)
    assert copy.name == "model"
    assert sorted(path.name for path in copy.iterdir()) == ["a.txt", "config.json"]
    assert local_copy(bucket / "model", depth=1) == copy
    assert sorted(fetched) == ["a.txt", "config.json"]  # once
    assert (local_copy(bucket / "model" / "a.txt")).read_text() == "a.txt"
    write_atomic(bucket / "model" / "a.txt", "changed")
    assert (local_copy(bucket / "model") / "a.txt").read_text() == "changed"
    assert (copy / "a.txt").read_text() == "a.txt"
    with pytest.raises(
        SammiError, match=r"none: no such file or folder in the bucket .*://bucket$"
    ):
        local_copy(bucket / "none")


def test_a_model_in_a_bucket(bucket, capsys, monkeypatch, tmp_path):
    """Converted into the bucket, then described from there."""
    model = f"{bucket}/model"
    assert main(["convert", "clip", "openshapes_clip", model]) == 0
    assert main(["inspect", model]) == 0
    assert f"model folder  {model}" in capsys.readouterr().out
    assert main(["convert", "clip", "openshapes_clip", model]) == 1
    assert f"{model}: exists already" in capsys.readouterr().err
    assert main(["convert", "clip", model, str(tmp_path / "copy")]) == 0
    copy = local_copy(as_path(model))
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (copy / name).read_bytes()
    assert main(["inspect", f"{bucket}/none"]) == 1
    assert "none: no such file or folder in the bucket" in capsys.readouterr().err


@pytest.mark.slow
def test_segmenting_into_a_bucket(bucket, capsys):
    out = f"{bucket}/out"
    assert main(["datasets", "draw", "os48/val_seen", "--count", "2", "--out", f"{bucket}/in"]) == 0
    command = ["segment", f"{bucket}/in/images", "--classes", "red square", "--out", out]
    assert main(command) == 0
    names = [name for name in list_objects(as_path(out)) if name.endswith(".json")]
    assert names == [".settings.json", "scene_00000.json", "scene_00001.json"]
    capsys.readouterr()
    assert main(command) == 0  # nothing is left to do
    assert list_objects(as_path(out)).keys() >= set(names)


def test_checkpoints_are_not_written_to_s3(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "openshapes_clip", "--workdir", "s3://b/run"]) == 1
    line = "s3://b/run: checkpoints cannot be written to s3:// (Orbax has no driver for it)"
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


XML = "<Error><Code>{}</Code><Message>no</Message></Error>"
REFUSALS = {
    "denied": ("gs", 403, DENIED, "access to the bucket is denied"),
    "expired": ("gs", 401, EXPIRED, "credentials are missing, wrong or expired"),
    "denied by s3": ("s3", 403, XML.format("AccessDenied").encode(), "access to the bucket is"),
    "expired at s3": (
        "s3", 400, XML.format("ExpiredToken").encode(), "credentials are missing, wrong or expired"
    ),
}  # fmt: skip


EVERYWHERE = [
    "train --config openshapes_catseg --workdir {} --set batch_size=8",
    "train --config openshapes_catseg --workdir out --set task.clip={}",
    "train --config openshapes_sammi --workdir out --set task.sam_cache={}",
    "eval --config openshapes_catseg --datasets os48/val_seen --workdir out --model {}",
    "eval --config openshapes_catseg --datasets ade20k_150 --workdir out --data-dir {}",
    "eval --config openshapes_catseg --datasets folder:{} --workdir out",
    "cache --config openshapes_sammi --out {}",
    "convert clip {} out",
    "convert clip openshapes_clip {}",
    "convert clip openshapes_clip out --tokenizer {}",
    "convert sammi openshapes_clip out --sam {}",
    "inspect {}",
    "push {} me/model",
    "export {}",
    "export out --model {}",
    "segment {} --classes square --out out",
    "segment image.png --classes {}/classes.txt --out out",
    "masks {} --out out",
    "masks image.png --out {}",
    "datasets prepare ade20k_150 --source . --data-dir {}",
    "datasets show ade20k_150 --data-dir {}",
    "datasets show folder:{}",
    "datasets draw os48/train --count 1 --out {}",
]
ONCE = ["convert clip openshapes_clip {}", "segment {} --classes square --out out"]


def error_line(capsys):
    """The only line on stderr, but for the one that says which model is used."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "no --model" not in line]
    lines = [line for line in lines if "it/s]" not in line and "%|" not in line]
    assert len(lines) == 1, lines
    (line,) = lines
    return line


@pytest.mark.parametrize(
    ("case", "command"),
    [
        *((case, command) for case in ("denied", "expired") for command in EVERYWHERE),
        *((case, command) for case in ("denied by s3", "expired at s3") for command in ONCE),
    ],
)
def test_a_bucket_that_refuses(case, command, tmp_path, monkeypatch, capsys):
    scheme, status, body, message = REFUSALS[case]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    command = command.replace("image.png", f"{tmp_path}/image.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with refusing(status, body) as port:
        use(monkeypatch, port)
        assert main(command.format(f"{scheme}://{BUCKET}/a").split()) == 1
    line = error_line(capsys)
    assert line.startswith("sammi")
    assert f"{scheme}://{BUCKET}/a" in line
    assert message in line
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "cache").exists()


WRITING = [
    ("convert clip openshapes_clip {}", b"model.safetensors"),
    ("datasets draw os48/train --count 2 --out {}", b"scene_00001"),
]


@pytest.mark.parametrize(("command", "until"), WRITING)
def test_a_network_that_ends_while_a_folder_is_written(
    command, until, stores, tmp_path, monkeypatch, capsys
):
    """What is there does not count, and the same command completes it."""
    folder = as_path(f"gs://{BUCKET}/written")
    use(monkeypatch, stores["gs"])
    object_store.remove(folder)
    line = Line(stores["gs"], until)
    use(monkeypatch, line.port)
    assert main(command.format(folder).split()) == 1
    line.close()
    text = error_line(capsys)
    assert f"{folder}/" in text
    assert "the bucket is not reachable" in text
    assert "run the same command again" in text
    use(monkeypatch, stores["gs"])
    assert UNFINISHED in list_objects(folder)
    assert not is_complete(folder)
    assert main(command.format(folder).split()) == 0
    assert is_complete(folder)


def test_a_network_that_ends_while_a_model_is_read(stores, tmp_path, monkeypatch, capsys):
    folder, cache = as_path(f"gs://{BUCKET}/read"), tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    use(monkeypatch, stores["gs"])
    object_store.remove(folder)
    convert("clip", "openshapes_clip", folder)
    line = Line(stores["gs"], b"model.safetensors?alt=media")
    use(monkeypatch, line.port)
    command = ["convert", "clip", str(folder), str(tmp_path / "copy")]
    assert main(command) == 1
    line.close()
    text = error_line(capsys)  # names one of the files that are read at the same time
    assert f"{folder}/" in text
    assert "the bucket is not reachable" in text
    assert not (tmp_path / "copy").exists()
    assert not list(cache.rglob("*model.safetensors*"))
    use(monkeypatch, stores["gs"])
    assert main(command) == 0


def test_commands_where_there_is_no_such_bucket(stores, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    use(monkeypatch, stores["gs"])
    for command in ("inspect {}", "convert clip openshapes_clip {}", "datasets show folder:{}"):
        assert main(command.format("gs://nobody/a").split()) == 1
        assert "gs://nobody" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_no_such_bucket(stores, monkeypatch):
    for scheme, port in stores.items():
        use(monkeypatch, port)
        with pytest.raises(SammiError, match=f"no such bucket {scheme}://nobody"):
            write_json(as_path(f"{scheme}://nobody/run/config.json"), {})


def test_a_server_that_is_not_there(monkeypatch):
    with refusing(403, DENIED) as port:
        pass
    use(monkeypatch, port)
    with pytest.raises(SammiError, match=r"b/a: the bucket is not reachable .* same command again"):
        list_objects(as_path("s3://b/a"))  # gcsfs tries for longer


def test_what_tensorstore_says():
    """Access problems are told apart from damage, for which a checkpoint is moved away."""
    denied = ValueError("PERMISSION_DENIED: Error writing gs://b/run: HTTP response code: 403")
    assert "access to the bucket is denied" in str(access_problem(denied))
    gone = ValueError("UNAVAILABLE: CURL error[7] Could not connect to server")
    assert "not reachable" in str(access_problem(gone))
    assert access_problem(ValueError("NOT_FOUND: Error opening zarr array")) is None
    assert access_problem(ValueError("DATA_LOSS: checksum mismatch")) is None
    chained = ValueError("restoring failed")
    chained.__cause__ = denied
    assert "access to the bucket is denied" in str(access_problem(chained))


def test_a_url_in_a_configuration():
    with pytest.raises(SammiError, match=r"ftp://host/a: ftp:// cannot be used"):
        load_config("openshapes_catseg", ["task.clip=ftp://host/a"])
    config = load_config("openshapes_catseg", ["task.clip=gs://b/clip"])
    assert config.task.clip == "gs://b/clip"


def test_class_lists(bucket):
    write_atomic(bucket / "classes.txt", "cat, kitten\ndog\n")
    write_atomic(bucket / "classes.json", '["cat", "dog"]')
    assert parse_class_list(f"{bucket}/classes.txt") == ["cat, kitten", "dog"]
    assert parse_class_list(f"{bucket}/classes.json") == ["cat", "dog"]


def test_a_user_folder(bucket, tmp_path, capsys):
    draw = ("datasets", "draw", "os48/val_seen", "--count", "2", "--out")
    for place in (bucket / "drawn", tmp_path / "drawn"):
        assert main([*draw, str(place)]) == 0
    assert main(["datasets", "show", f"folder:{bucket}/drawn"]) == 0
    assert "2 images" in capsys.readouterr().out
    there, here = (open_dataset(f"folder:{top}/drawn") for top in (bucket, tmp_path))
    assert there.class_names == here.class_names
    assert len(there.source) == 2
    for one, other in zip(there.source, here.source, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_a_run_starts_from_models_in_the_bucket(bucket, monkeypatch):
    upload_folder(FOLDER / "openshapes", bucket / "segmenter", "config.json")
    convert("sam", "openshapes_sam", bucket / "sam")
    segmenter, sam = read_model("openshapes"), read_model(bucket / "sam")
    fresh = {path: np.zeros(value.shape, "f") for path, value in segmenter.params.items()}
    monkeypatch.setattr(Task, "initial_params", lambda self, seed: dict(fresh))
    task = SegmentConfig(model=segmenter.config, segmenter=f"{bucket}/segmenter")
    started = make_task(TrainConfig(task=task, batch_size=2)).initial_params(0)
    for path, value in segmenter.params.items():
        np.testing.assert_array_equal(started[path], value, err_msg=path)
    task = SegmentConfig(model=segmenter.config, sam=f"{bucket}/sam")
    started = make_task(TrainConfig(task=task, batch_size=2)).initial_params(0)
    for path, value in sam.params.items():
        np.testing.assert_array_equal(started[f"sam/{path}"], value, err_msg=path)
