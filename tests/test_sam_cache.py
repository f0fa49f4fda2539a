"""The cache of SAM's embeddings: what is in it, training with it, and errors."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from sammi_jax.cli.main import main
from sammi_jax.config.experiment import CaptionConfig, DataConfig, SegmentConfig, TrainConfig
from sammi_jax.config.fields import to_dict
from sammi_jax.data.input import embeddings as sam_cache
from sammi_jax.data.input.augment import CheckLabel
from sammi_jax.data.input.embeddings import EMBEDDINGS, CacheInfo, SamCache, writing_cache
from sammi_jax.errors import SammiError
from sammi_jax.models.sam.image_encoder import ImageEncoder
from sammi_jax.object_store import list_objects
from sammi_jax.ops.sam_image import sam_crops
from sammi_jax.parallel.mesh import batch_sharding, make_mesh
from sammi_jax.pods.aot import _abstract_batch
from sammi_jax.training import embed
from sammi_jax.training.embed import make_cache
from sammi_jax.training.loop import train
from sammi_jax.training.task import Task
from sammi_jax.training.tasks import make_task
from sammi_jax.training.tasks.segment_data import ENCODER, check_weights, training_set
from sammi_jax.weights.params import build
from tests.test_sammi import CATSEG, SAMMI

ROOT = Path(__file__).resolve().parent.parent
TEXT = replace(SAMMI.clip.text, vocab_size=30, context_length=12)  # of OpenShapes' tokenizer
MODEL = replace(SAMMI, clip=replace(SAMMI.clip, text=TEXT))
SAM = MODEL.masks.sam
TASK = SegmentConfig(model=MODEL)
NUM, BATCH = 12, 8  # the second batch is short
CONFIG = TrainConfig(
    task=TASK, data=DataConfig(num_examples=NUM), batch_size=BATCH, seed=3, steps=4, log_every=1,
    checkpoint_every=2,
)  # fmt: skip
INFO = CacheInfo(
    format=1, sam_sha256="a", sam=SAM, compute_dtype="float32", data="d", preprocessing="none",
    image_size=32, num_examples=6, pixels_sha256="b", dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A float32 cache of CONFIG, made by the command; tests only read it."""
    folder = tmp_path_factory.mktemp("caches")
    (folder / "tiny.py").write_text("from tests.test_sam_cache import CONFIG as config\n")
    arguments = ["cache", "--config", folder / "tiny.py", "--out", folder / "cache"]
    assert main([*map(str, arguments), "--dtype", "float32"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "tiny.py"]
    return folder / "cache"


@pytest.fixture
def copied(cache, tmp_path):
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def initialized_once():
    """Fresh parameters are kept: they would be most of what these tests compute."""
    kept, real = {}, Task.initial_params

    def initial_params(self, seed):
        key = (self._config.task.model, seed)
        if key not in kept:
            kept[key] = jax.tree.map(np.asarray, real(self, seed))
        return jax.tree.map(np.array, kept[key])  # copies: training donates what it is given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "initial_params", initial_params)
        yield


def with_cache(folder, config=CONFIG):
    return replace(config, task=replace(config.task, sam_cache=str(folder)))


@pytest.fixture(scope="module")
def encode():
    """``(images) -> embeddings`` by the whole model's SAM, not by the cache's code."""
    params = make_task(CONFIG).initial_params(CONFIG.seed)
    encoder = {p.removeprefix(ENCODER): v for p, v in params.items() if p.startswith(ENCODER)}

    @jax.jit
    def run(images):
        model = build(lambda: ImageEncoder(SAM, rngs=nnx.Rngs(0)), encoder)
        return model(sam_crops(images.astype(jnp.float32), SAM.image_size))

    return lambda images: np.asarray(run(images))


def test_row_i_is_the_embedding_of_example_i(cache, encode):
    rows = np.load(cache / "embeddings.npy")
    assert rows.shape == (NUM, 8, 8, 16)
    assert rows.dtype == np.float32
    source = training_set(CONFIG, TASK)[0].source
    expected = encode(np.stack([source[index]["image"] for index in range(NUM)]))
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 0.01
    assert sorted(path.name for path in cache.iterdir()) == ["cache.json", "embeddings.npy"]
    info = json.loads((cache / "cache.json").read_text())
    assert (info["format"], info["data"]) == (1, "openshapes/train of seed 3")
    assert info["sam"] == to_dict(SAM)


def test_batches_hold_the_rows_of_their_examples(cache, encode):
    plain, cached = make_task(CONFIG), make_task(with_cache(cache))
    for step in (0, 5):  # the second epoch too
        batch = cached.batch(step)
        np.testing.assert_array_equal(
            batch.examples["images"], plain.batch(step).examples["images"]
        )
        expected = encode(batch.examples["images"])
        np.testing.assert_allclose(batch.examples["sam_embeddings"], expected, rtol=1e-4, atol=1e-5)
    batches = cached.batches(5)  # as a resumed run reads them
    jax.tree.map(np.testing.assert_array_equal, next(batches), cached.batch(5))
    batches.close()


@pytest.fixture(scope="module")
def losses():
    """``(what, batches, broken) -> what`` of the loss of each batch, with the same random weights.

    ``what`` takes a loss and its metrics; the rest of them is not compiled. ``broken``: SAM's
    encoder has no weights.
    """
    task, rng = make_task(CONFIG), np.random.default_rng(0)
    params = {
        path: value if path.startswith("sam/") else value + 0.1 * rng.normal(size=value.shape)
        for path, value in task.initial_params(CONFIG.seed).items()
    }
    no_encoder = {
        path: jnp.full_like(value, jnp.nan) if path.startswith(ENCODER) else value
        for path, value in params.items()
    }

    @partial(jax.jit, static_argnums=0)
    def run(what, params, batches):
        model = build(lambda: task.make(nnx.Rngs(0)), params)
        return [what(*task.loss(model, batch, jax.random.key(0))) for batch in batches]

    return lambda what, batches, broken=False: run(what, no_encoder if broken else params, batches)


@pytest.mark.slow
def test_the_encoder_does_not_run_with_a_cache(cache, losses):
    what = lambda _, metrics: (metrics["points"], metrics["masks"])  # noqa: E731
    batches = make_task(CONFIG).batch(1), make_task(with_cache(cache)).batch(1)
    without, with_it = losses(what, batches)
    assert without == with_it
    assert with_it[1] > 0
    without, again = losses(what, batches, broken=True)
    assert with_it == again
    assert with_it != without


@pytest.mark.slow
def test_the_loss_with_the_cache_is_the_loss_without(cache, losses):
    batches = make_task(CONFIG).batch(1), make_task(with_cache(cache)).batch(1)
    without, with_it = losses(lambda loss, _: loss, batches)
    np.testing.assert_allclose(with_it, without, rtol=1e-6)
    assert losses(lambda loss, _: loss, batches[1:], broken=True)[0] == with_it


def test_sammi_compile_knows_the_rows():
    config, mesh = with_cache("not-read"), make_mesh(CONFIG.mesh)
    rows = _abstract_batch(config, config.task, 36, mesh).examples["sam_embeddings"]
    assert (rows.shape, rows.dtype) == ((BATCH, 8, 8, 16), np.float16)
    assert rows.sharding.spec == batch_sharding(mesh).spec
    assert "sam_embeddings" not in _abstract_batch(CONFIG, TASK, 36, mesh).examples


def test_float16_rounds_once(cache, tmp_path):
    exact = np.load(cache / "embeddings.npy")
    with writing_cache(tmp_path / "half", replace(SamCache(cache).info, dtype="float16")) as writer:
        writer.write(exact, 0)
        writer.save(NUM)
    rows = np.load(tmp_path / "half" / "embeddings.npy")
    np.testing.assert_array_equal(rows, exact.astype(np.float16))
    batch = make_task(with_cache(tmp_path / "half")).batch(0)
    assert batch.examples["sam_embeddings"].dtype == np.float16


def test_workers_get_the_path_and_not_the_rows(cache):
    opened = SamCache(cache)
    packed = pickle.dumps(opened)
    assert len(packed) < 500
    np.testing.assert_array_equal(pickle.loads(packed)[4], opened[4])


def assert_error(config, message):
    with pytest.raises(SammiError, match=message) as error:
        make_task(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "data 'openshapes/train of seed 3', not 'openshapes/train of seed 4'"),
        ({"data": DataConfig(num_examples=NUM + 1)}, "num_examples 12, not 13"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype 'float32', not 'bfloat16'"),
        ({"task": replace(TASK, model=replace(MODEL, crop_size=64))}, "image_size 32, not 64"),
        (
            {"task": replace(TASK, model=replace(
                MODEL, masks=replace(MODEL.masks, sam=replace(SAM, width=64))))},
            "sam.width 32, not 64",
        ),
    ],
)  # fmt: skip
def test_the_cache_of_another_experiment_raises_an_error(cache, change, message):
    text = assert_error(with_cache(cache, replace(CONFIG, **change)), message)
    assert text.startswith(f"{cache}: holds the embeddings of another experiment")
    assert "sammi cache --config" in text


def test_other_weights_and_other_images_raise_an_error(copied):
    task = make_task(with_cache(copied))
    params = task.initial_params(CONFIG.seed)
    with pytest.raises(SammiError, match=r"another experiment .another SAM's weights"):
        task.initial_params(CONFIG.seed + 1)
    name = f"{ENCODER}pos_embed"
    with pytest.raises(SammiError, match="another SAM's weights"):
        check_weights(SamCache(copied), params | {name: params[name] + 1})
    file = copied / "cache.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"pixels_sha256": "0"}))
    assert_error(with_cache(copied), "other images")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_a_file_that_is_cut_short(copied, keep):
    file = copied / "embeddings.npy"
    os.truncate(file, keep if isinstance(keep, int) else int(keep * file.stat().st_size))
    assert_error(
        with_cache(copied), r"embeddings\.npy: missing, damaged or cut short .* make it again"
    )


def test_a_folder_that_is_no_cache(copied, tmp_path):
    assert_error(
        with_cache(tmp_path / "none"), "none: no such folder; a cache is made by 'sammi cache"
    )
    assert_error(with_cache(tmp_path), r"has no cache\.json; a cache is made by")
    file = copied / "cache.json"
    info = json.loads(file.read_text())
    for values, message in (
        ("{", "not readable as JSON"),
        (info | {"format": 2}, "format 2, not 1"),
        (info | {"color": 1}, "color: no such field"),
        ({k: v for k, v in info.items() if k != "data"}, "data is missing"),
        (info | {"dtype": "float16"}, r"holds .* float32, but cache\.json says .* float16"),
    ):
        file.write_text(values if isinstance(values, str) else json.dumps(values))
        assert_error(with_cache(copied), message)
    file.write_text(json.dumps(info))
    (copied / "embeddings.npy").unlink()
    assert_error(with_cache(copied), r"embeddings\.npy: missing")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, data=DataConfig(name="ade20k_150/training")), "set data.augment=none"),
        (replace(CONFIG, task=replace(TASK, model=CATSEG)), "has no SAM"),
        (replace(CONFIG, task=CaptionConfig()), "only segmentation experiments"),
        (replace(CONFIG, batch_size=6), "batch_size=6"),
        (replace(CONFIG, data=DataConfig(num_examples=0)), "num_examples"),
    ],
)
def test_what_cannot_be_cached(tmp_path, config, message):
    with pytest.raises(SammiError, match=message) as error:
        make_cache(config, tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_catseg_reads_no_cache(cache):
    assert_error(with_cache(cache, replace(CONFIG, task=replace(TASK, model=CATSEG))), "has no SAM")


def test_an_interrupted_command_resumes(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "SAVE_EVERY", 1)
    counted, real = [], embed.make_encoder

    def failing(*arguments):
        run = real(*arguments)

        def encode(images):
            counted.append(len(images))
            if len(counted) == 2:
                raise KeyboardInterrupt
            return run(images)

        return encode

    monkeypatch.setattr(embed, "make_encoder", failing)
    with pytest.raises(KeyboardInterrupt):
        make_cache(CONFIG, tmp_path / "new", "float32")
    assert [path.name for path in tmp_path.iterdir()] == [".new.partial"]
    assert_error(with_cache(tmp_path / "new"), "no such folder")
    for other, dtype, message in (
        (replace(CONFIG, seed=4), "float32", "'openshapes/train of seed 4'.; it is unfinished"),
        (CONFIG, "float16", "has rows of float32; it is unfinished"),
    ):
        with pytest.raises(SammiError, match=message):
            make_cache(other, tmp_path / "new", dtype)
    make_cache(CONFIG, tmp_path / "new", "float32")
    assert counted == [BATCH] * 3, "the first batch is not computed again"
    for name in ("cache.json", "embeddings.npy"):
        assert (tmp_path / "new" / name).read_bytes() == (cache / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with pytest.raises(SammiError, match="exists already"):
        make_cache(CONFIG, tmp_path / "new", "float32")


def test_killed_while_writing(tmp_path):
    """SIGKILL, after four rows are saved and a fifth is not."""
    (tmp_path / "info.json").write_text(json.dumps(to_dict(INFO)))
    script = """
import json, os, signal, sys
import numpy as np
from sammi_jax.config.fields import from_dict
from sammi_jax.data.input.embeddings import CacheInfo, writing_cache
info = from_dict(CacheInfo, json.load(open("info.json")))
with writing_cache("cache", info) as writer:
    writer.write(np.ones((4, 8, 8, 16), np.float32), 0)
    writer.save(4)
    writer.write(np.ones((1, 8, 8, 16), np.float32), 4)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".cache.partial", ".cache.partial.lock", "info.json"}
    with writing_cache(tmp_path / "cache", INFO) as writer:
        assert writer.done == 4
        writer.write(np.full((2, 8, 8, 16), 2, np.float32), 4)
        writer.save(6)
    found = SamCache(tmp_path / "cache")
    assert [found[index].mean() for index in range(6)] == [1, 1, 1, 1, 2, 2]


def write_four(folder):
    with writing_cache(folder, INFO) as writer:
        writer.write(np.ones((4, 8, 8, 16), np.float32), 0)
        writer.save(4)


def test_a_cache_without_all_its_rows_gets_no_name(tmp_path):
    with pytest.raises(SammiError, match="4 of 6 rows"):
        write_four(tmp_path / "cache")
    os.truncate(tmp_path / ".cache.partial" / "embeddings.npy", 300)
    with pytest.raises(SammiError, match="damaged or cut short"):
        write_four(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_does_not_fit_the_disk_or_the_type(tmp_path, monkeypatch):
    half = replace(INFO, dtype="float16")
    with (
        pytest.raises(SammiError, match=r"examples 0 to 0 is not finite in float16; .* float32"),
        writing_cache(tmp_path / "cache", half) as writer,
    ):
        writer.write(np.full((1, 8, 8, 16), 7e4, np.float32), 0)
    shutil.rmtree(tmp_path / ".cache.partial")
    monkeypatch.setattr(sam_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with (
        pytest.raises(SammiError, match=r"needs 0\.0 GB and 0\.0 GB are free"),
        writing_cache(tmp_path / "cache", half),
    ):
        pass
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def user_set(tmp_path, rng):
    """A user folder with three images of different sizes."""
    for part in ("images", "labels"):
        (tmp_path / "user" / part).mkdir(parents=True)
    for name, size in (("a", (40, 60)), ("b", (70, 30)), ("c", (33, 33))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "user" / "images" / f"{name}.png")
        label = rng.integers(0, 2, size).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / "user" / "labels" / f"{name}.png")
    (tmp_path / "user" / "classes.txt").write_text("striped red thing\nblue waves\n")
    return f"folder:{tmp_path / 'user'}"


def test_photographs_are_resized_to_a_square(user_set, tmp_path, encode):
    data = DataConfig(name=user_set, augment="none")
    config = replace(CONFIG, data=data)
    dataset, (check, transform) = training_set(config, TASK)
    assert check == CheckLabel(user_set, 2, 255)
    example = transform.map(dataset.source[0])
    size = (MODEL.crop_size,) * 2
    with Image.open(tmp_path / "user/images/a.png") as image:
        expected = image.resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(example["image"], np.asarray(expected))
    with Image.open(tmp_path / "user/labels/a.png") as label:
        expected = label.resize(size, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(example["label"], np.asarray(expected))
    make_cache(config, tmp_path / "cache", "float32")
    batch = make_task(with_cache(tmp_path / "cache", config)).batch(2)
    found = batch.examples
    np.testing.assert_allclose(
        found["sam_embeddings"], encode(found["images"]), rtol=1e-4, atol=1e-5
    )
    Image.new("RGB", (60, 40)).save(tmp_path / "user/images/a.png")
    assert_error(with_cache(tmp_path / "cache", config), "other images")
    assert_error(
        with_cache(tmp_path / "cache", replace(config, data=DataConfig(user_set))), "random crop"
    )


@pytest.mark.slow
def test_a_resumed_run_with_a_cache_is_bit_equal(cache, tmp_path, monkeypatch):
    config = with_cache(cache)
    straight = train(make_task(config), config, tmp_path / "straight")
    task = make_task(config)
    real = type(task).batches

    def failing(self, start):
        for step, batch in enumerate(real(self, start), start):
            if step == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(type(task), "batches", failing)
    with pytest.raises(KeyboardInterrupt):
        train(task, config, tmp_path / "resumed")
    monkeypatch.setattr(type(task), "batches", real)
    resumed = train(make_task(config), config, tmp_path / "resumed")
    name = "model.safetensors"
    assert (straight / name).read_bytes() == (resumed / name).read_bytes()
    logs = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "straight", tmp_path / "resumed")
    ]
    assert len(logs[0]) == 4
    assert logs[0] == logs[1]


def test_a_cache_in_a_bucket(bucket, tmp_path, capsys):
    """Written there, and read by training."""
    (tmp_path / "tiny.py").write_text("from tests.test_sam_cache import CONFIG as config\n")
    command = ["cache", "--config", str(tmp_path / "tiny.py"), "--out", f"{bucket}/cache"]
    assert main(command) == 0
    assert sorted(list_objects(bucket / "cache")) == ["cache.json", "embeddings.npy"]
    rows = SamCache(f"{bucket}/cache")
    assert rows.info.num_examples == NUM
    batch = make_task(with_cache(f"{bucket}/cache")).batch(0)
    held = batch.examples[EMBEDDINGS]
    assert len(held) == BATCH
    known = {rows[index].tobytes() for index in range(NUM)}
    assert {np.asarray(row, rows.info.dtype).tobytes() for row in held} <= known
    capsys.readouterr()
    assert main(command) == 1
    assert f"{bucket}/cache: exists already" in capsys.readouterr().err
