"""A whole life in a bucket, in processes that share nothing else, is to the bit one on disk."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import models, pre_tokenizers

from sammi_jax.convert.api import read_source
from sammi_jax.files import local_copy
from sammi_jax.object_store import as_path, list_objects, remove
from sammi_jax.text.tokenizer import END, START, Tokenizer
from sammi_jax.training.checkpoint import checkpoint_steps
from sammi_jax.weights.model_folder import write_model
from tests.emulators import BUCKET, FORBIDDEN, Line, google, use, variables
from tests.processes import ROOT, assert_equal_runs, finish, free_port, signal_at
from tests.xla_flags import fast_flags

STEPS = 12
EXPERIMENT = f"""
from dataclasses import replace

from sammi_jax.config import DataConfig, OptimConfig, SEGMENTER_SIZES, SegmentConfig, TrainConfig

config = TrainConfig(
    task=SegmentConfig(model=SEGMENTER_SIZES["openshapes"]),
    data=DataConfig(name="mess_pst900/test"),
    optim=OptimConfig(peak_lr=2e-3, clip_norm=1.0),
    steps={STEPS},
    batch_size=4,
    checkpoint_every=2,
    log_every=1,
)
"""
PLAIN = ("--set", "data.name=openshapes")  # a run that needs nothing from the store
RUN = "import sys; from sammi_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
pytestmark = [
    pytest.mark.slow,
    # gcsfs sends files of some MB in one piece.
    pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning"),
]


@pytest.fixture
def store(monkeypatch):
    with google() as port:
        use(monkeypatch, port)
        yield port


class Machine:
    """A machine of its own: home, cache and working directory are new with every command."""

    def __init__(self, folder, config, port):
        self._folder, self._config, self._port, self._count = folder, config, port, 0

    def start(self, command, *arguments, devices=1, before="", environment=None):
        self._count += 1
        home = self._folder / f"machine{self._count}"
        home.mkdir(parents=True)
        if command in ("train", "eval"):
            arguments = ("--config", self._config, *arguments)
        environment = {
            "XLA_FLAGS": fast_flags(devices, fused=True),
            "JAX_COMPILATION_CACHE_DIR": str(self._config.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(home / "cache"),
        } | (environment or {})
        return subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{RUN}", command, *arguments],
            env=os.environ | variables(self._port) | environment,
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **options):
        (code,), (text,) = finish(self.start(*arguments, **options))
        assert code == 0, text

    def local_folders(self):
        """What the commands left in their working directories."""
        return {path.name for path in self._folder.glob("machine*/*")}


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config" / "tiny.py"
    file.parent.mkdir()
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def source(tmp_path):
    """Eight images as the owner of PST900 ships them."""
    rng = np.random.default_rng(0)
    top = tmp_path / "owner" / "PST900_RGBT_Dataset" / "test"
    for part, shape, high in (("thermal", (64, 80, 3), 256), ("labels", (64, 80), 5)):
        (top / part).mkdir(parents=True)
        for index in range(8):
            values = rng.integers(0, high, shape, np.uint8)
            Image.fromarray(values).save(top / part / f"{index}.png")
    return tmp_path / "owner"


def write_clip(folder):
    """The bundled CLIP with a tokenizer that knows any text, if not well."""
    model = read_source("openshapes_clip", ["clip"])
    words = ["[UNK]", "a", "photo", "of", "the", "scene", START, END]
    plain = tokenizers.Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.add_special_tokens([START, END])
    tokenizer = Tokenizer(plain)
    write_model(
        folder, "clip", model.config, model.params, source={}, licence="MIT", tokenizer=tokenizer
    )


def prepare(machine, source, top):
    arguments = ("mess_pst900", "--source", source, "--data-dir", f"{top}/data")
    finish(machine.start("datasets", "prepare", *arguments, "--allow-incomplete"))


def train_arguments(top):
    settings = (f"data.data_dir={top}/data", f"task.clip={top}/clip")
    return ("train", "--workdir", f"{top}/run", *(part for s in settings for part in ("--set", s)))


def live(machine, source, top):
    """Prepare, train until killed, resume on two devices, evaluate, export."""
    data = ("--data-dir", f"{top}/data")
    train = train_arguments(top)
    write_clip(f"{top}/clip")
    prepare(machine, source, top)
    (code,), (text,) = finish(machine.start(*train, before=signal_at(7, "SIGKILL")))
    assert code == -signal.SIGKILL, text
    machine.run(*train, devices=2)
    evaluate = ("eval", "--model", f"{top}/run/model", "--datasets", "mess_pst900", *data)
    machine.run(*evaluate, "--workdir", f"{top}/eval", "--set", "eval.panels=2", devices=2)
    machine.run("export", f"{top}/exported", "--model", f"{top}/run/model", "--platforms", "cpu")
    machine.run("convert", "catseg", f"{top}/run", f"{top}/converted")


def contents(folder):
    """The bytes of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(folder):
    """The numbers of an evaluation, without names of folders and times."""
    found = json.loads((folder / "results.json").read_text())
    del found["model"], found["config_sha256"]
    for record in found["results"]:
        del record["timing"]
    return found


def test_a_life_in_a_bucket(tmp_path, config, source, store):
    disk, bucket = tmp_path / "disk", f"gs://{BUCKET}/life"
    live(Machine(tmp_path / "a", config, store), source, disk)
    there = Machine(tmp_path / "b", config, store)
    live(there, source, bucket)
    assert there.local_folders() == {"cache"}  # no folder named gs:
    copy = local_copy(as_path(bucket))
    assert_equal_runs(copy / "run", disk / "run")
    assert (copy / "run" / "curves.png").read_bytes() == (disk / "run" / "curves.png").read_bytes()
    assert contents(copy / "data") == contents(disk / "data")
    assert results(copy / "eval") == results(disk / "eval")
    assert contents(copy / "eval" / "panels") == contents(disk / "eval" / "panels")
    weights = [top / "converted" / "model.safetensors" for top in (copy, disk)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert sorted(contents(copy / "exported")) == sorted(contents(disk / "exported"))
    assert checkpoint_steps(as_path(bucket) / "run") == checkpoint_steps(disk / "run")


def test_a_network_that_ends_within_a_save(tmp_path, config, store):
    """The save does not count; the run resumes from the one before, to the same end."""
    train = ("train", "--workdir", f"gs://{BUCKET}/run", *PLAIN)
    machine = Machine(tmp_path / "straight", config, store)
    machine.run("train", "--workdir", tmp_path / "run", *PLAIN)
    line = Line(store, until=b"checkpoints%2F6%2Fstate%2Focdbt")
    process = Machine(tmp_path / "cut", config, line.port).start(*train)
    assert line.was_cut.wait(600)
    process.kill()
    finish(process)
    line.close()
    workdir = as_path(f"gs://{BUCKET}/run")
    assert any(name.startswith("checkpoints/6/") for name in list_objects(workdir))
    assert checkpoint_steps(workdir)[-1] == 4
    Machine(tmp_path / "again", config, store).run(*train)
    assert_equal_runs(local_copy(workdir), tmp_path / "run")


def test_a_network_that_comes_back(tmp_path, config, store):
    """The clients try again, and the run does not notice."""
    train = ("train", "--workdir", f"gs://{BUCKET}/run", *PLAIN)
    Machine(tmp_path / "straight", config, store).run(
        "train", "--workdir", tmp_path / "run", *PLAIN
    )
    line = Line(store, until=b"checkpoints%2F6%2Fstate%2Focdbt")
    process = Machine(tmp_path / "cut", config, line.port).start(*train)
    assert line.was_cut.wait(600)
    line.restore()
    (code,), (text,) = finish(process)
    assert code == 0, text
    line.close()
    assert_equal_runs(local_copy(as_path(f"gs://{BUCKET}/run")), tmp_path / "run")


def test_a_right_that_is_lost_within_a_save(tmp_path, config, store):
    """The line names it, and the run resumes once it has the right again."""
    train = ("train", "--workdir", f"gs://{BUCKET}/run", *PLAIN)
    Machine(tmp_path / "straight", config, store).run(
        "train", "--workdir", tmp_path / "run", *PLAIN
    )
    line = Line(store, until=b"checkpoints%2F6%2Fstate%2Focdbt", answer=FORBIDDEN)
    (code,), (text,) = finish(Machine(tmp_path / "lost", config, line.port).start(*train))
    line.close()
    assert code == 1, text
    last = f"sammi train: gs://{BUCKET}/run/checkpoints/6: access to the bucket is denied"
    assert text.splitlines()[-1].startswith(last)
    assert "Traceback" not in text
    workdir = as_path(f"gs://{BUCKET}/run")
    assert checkpoint_steps(workdir)[-1] == 4
    Machine(tmp_path / "again", config, store).run(*train)
    assert_equal_runs(local_copy(workdir), tmp_path / "run")


def test_a_damaged_checkpoint_is_moved_away(tmp_path, config, store):
    workdir = as_path(f"gs://{BUCKET}/run")
    train = ("train", "--workdir", str(workdir), *PLAIN)
    machine = Machine(tmp_path / "machine", config, store)
    finish(machine.start(*train, before=signal_at(9, "SIGKILL")))
    last = checkpoint_steps(workdir)[-1]
    for name in list_objects(workdir / "checkpoints" / str(last)):
        if "/d/" in name:
            remove(workdir / "checkpoints" / str(last) / name)
    (code,), (text,) = finish(machine.start(*train))
    assert code == 0, text
    assert text.count(f"checkpoints/{last}: damaged") == 1
    assert "Traceback" not in text
    assert list_objects(workdir / "checkpoints-damaged" / str(last))
    Machine(tmp_path / "straight", config, store).run(
        "train", "--workdir", tmp_path / "run", *PLAIN
    )
    assert_equal_runs(local_copy(workdir), tmp_path / "run")


def test_a_job_of_two_processes(tmp_path, config, store):
    """Each process writes its part of a checkpoint; they share no folder."""
    for place, workdir in (("disk", tmp_path / "run"), ("bucket", f"gs://{BUCKET}/run")):
        job = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
        codes, texts = finish(
            *(
                Machine(tmp_path / f"{place}{index}", config, store).start(
                    "train", "--workdir", workdir, *PLAIN, *job, "--process-id", str(index)
                )
                for index in range(2)
            )
        )
        assert codes == [0, 0], texts
    assert checkpoint_steps(as_path(f"gs://{BUCKET}/run")) == checkpoint_steps(tmp_path / "run")
    assert_equal_runs(local_copy(as_path(f"gs://{BUCKET}/run")), tmp_path / "run")


def test_programs_compiled_on_another_machine(tmp_path, config, store):
    """A new process, whose machine has no cache, reads them from the bucket."""
    folder = f"gs://{BUCKET}/compiled"
    cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    first, cached = [], []
    for name in ("first", "second"):
        workdir = tmp_path / name / "run"
        machine = Machine(tmp_path / name, config, store)
        machine.run("train", "--workdir", workdir, *PLAIN, environment=cache)
        assert machine.local_folders() <= {"cache"}
        first.append(json.loads((workdir / "log.jsonl").read_text().splitlines()[0]))
        cached.append(list_objects(as_path(folder)))
    assert first[0]["start_cached"] < first[1]["start_cached"]
    assert cached[0] == cached[1]  # the second compiles nothing
    assert_equal_runs(tmp_path / "second" / "run", tmp_path / "first" / "run")
