"""Paths in buckets against emulators of Google's and Amazon's store; errors as one line."""

from pathlib import Path

import pytest
from etils import epath

from sammi_jax import object_store
from sammi_jax.cli.main import main
from sammi_jax.config.files import load_config
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
from tests.emulators import BUCKET, amazon, google, refusing, use

# gcsfs sends files of some MB in one piece.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
DENIED = b'{"error": {"code": 403, "message": "no storage.objects.get"}}'
EXPIRED = b'{"error": {"code": 401, "message": "Request had invalid authentication credentials"}}'


@pytest.fixture(scope="module")
def ports():
    with google() as gs, amazon() as s3:
        with pytest.MonkeyPatch.context() as monkeypatch:
            use(monkeypatch, s3)
            object_store._filesystem("s3").mkdir(BUCKET)
        yield {"gs": gs, "s3": s3}


@pytest.fixture(params=["gs", "s3"])
def bucket(request, ports, monkeypatch, tmp_path):
    """An empty folder of a bucket, in either store."""
    use(monkeypatch, ports[request.param])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    top = as_path(f"{request.param}://{BUCKET}/top")
    object_store.remove(top)
    return top


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
    assert fetched == ["a.txt", "config.json"]  # once
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


@pytest.mark.parametrize("case", REFUSALS)
@pytest.mark.parametrize(
    "command",
    [
        "eval --config openshapes_catseg --datasets os48/val_seen --workdir out --model {}",
        "eval --config openshapes_catseg --datasets ade20k_150 --workdir out --data-dir {}",
        "convert clip openshapes_clip {}",
        "export {}",
        "segment {} --classes square --out out",
        "datasets prepare ade20k_150 --source . --data-dir {}",
        "train --config openshapes_catseg --workdir {} --set batch_size=8",
    ],
)
def test_a_bucket_that_refuses(case, command, tmp_path, monkeypatch, capsys):
    scheme, status, body, message = REFUSALS[case]
    if command.startswith("train") and scheme == "s3":
        scheme, status, body, message = REFUSALS["denied"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with refusing(status, body) as port:
        use(monkeypatch, port)
        assert main(command.format(f"{scheme}://{BUCKET}/a").split()) == 1
    lines = capsys.readouterr().err.splitlines()
    (text,) = [
        line for line in lines if line.startswith(("sammi: error", "sammi eval", "sammi train"))
    ]
    assert f"{scheme}://{BUCKET}/a" in text
    assert message in text
    assert list(tmp_path.iterdir()) == []


def test_no_such_bucket(ports, monkeypatch):
    for scheme, port in ports.items():
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
