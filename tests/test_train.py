"""The loop on a dummy task: what it trains, and that resuming is exact."""

import itertools
import json
import os
import re
import shutil
import signal
from contextlib import closing
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from sammi_jax.config.experiment import MeshConfig, OptimConfig, TaskConfig, TrainConfig
from sammi_jax.data.input.prefetch import prefetch
from sammi_jax.errors import SammiError
from sammi_jax.layers import Buffer, layer_norm, linear
from sammi_jax.parallel.batch import Batch
from sammi_jax.parallel.run import PreemptedError
from sammi_jax.training.checkpoint import checkpoint_steps, digest, read_trained
from sammi_jax.training.flops import PEAK_FLOPS
from sammi_jax.training.goodput import Goodput, Startup
from sammi_jax.training.loop import train
from sammi_jax.training.metrics_log import Log
from sammi_jax.training.state import held_params, trainable_paths
from sammi_jax.training.task import Task
from sammi_jax.training.validation import Validation


class Net(nnx.Module):
    def __init__(self, rngs):
        self.tower = linear(5, 8, rngs=rngs)
        self.norm = layer_norm(8, rngs=rngs)
        self.head = linear(8, 3, rngs=rngs)
        self.shift = Buffer(jnp.arange(5.0))

    def __call__(self, x):
        return self.head(self.norm(jax.nn.relu(self.tower(x + self.shift[None]))))


@dataclass(frozen=True)
class DummyConfig(TaskConfig):
    kind = "dummy"


class Dummy(Task[Net]):
    """Regression with a noise from the step's key.

    ``fail_at`` breaks the data at a step, ``poison`` makes a batch bad and ``large`` one too
    large; from ``sigterm`` on the machine asks for the end.
    """

    def __init__(self, fail_at=None, poison=None, large=None, sigterm=None, signal=signal.SIGTERM):
        self.fail_at, self.poison, self.large, self.sigterm = fail_at, poison, large, sigterm
        self.signal = signal

    def make(self, rngs):
        return Net(rngs)

    def is_trainable(self, path):
        return not path.startswith("tower")

    def lr_scale(self, path):
        return 0.5 if path.startswith("norm") else 1.0

    def batches(self, start):
        for step in itertools.count(start):
            yield self.batch(step)

    def batch(self, step):
        if step == self.fail_at:
            raise KeyboardInterrupt
        if self.sigterm is not None and step >= self.sigterm:
            os.kill(os.getpid(), self.signal)  # SIGTERM again and again: nothing changes
            if self.signal == signal.SIGINT:  # a second one interrupts
                self.sigterm = None
        rng = np.random.default_rng(step)
        x = rng.normal(size=(8, 5)).astype(np.float32)
        if step == self.poison:
            x[0, 0] = np.nan
        if step == self.large:
            x *= 1000
        return Batch({"x": x, "y": x[:, :3] ** 2}, {"weight": np.float32([1.0, 2.0, 3.0])})

    def loss(self, model, batch, key):
        x, y = batch.examples["x"], batch.examples["y"]
        error = model(x + 0.1 * jax.random.normal(key, x.shape)) - y
        loss = (batch.shared["weight"][None] * error**2).mean()
        return loss, {"largest": jnp.abs(error).max()}

    def export(self, params, folder, step):
        folder.mkdir()
        np.savez(folder / "params.npz", **{k.replace("/", "."): v for k, v in params.items()})


CONFIG = TrainConfig(
    task=DummyConfig(),
    optim=OptimConfig(peak_lr=1e-2, clip_norm=1.0),
    steps=4,
    batch_size=8,
    log_every=1,
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A folder where CONFIG was trained without a break; tests only read it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(Dummy(), CONFIG, workdir)
    return workdir


def exported(folder):
    with np.load(folder / "params.npz") as file:
        return dict(file)


def test_frozen_weights_are_rounded_on_the_devices_only(tmp_path):
    """In bfloat16 they are held in it; what is exported and compared are those that were read."""
    config = replace(CONFIG, compute_dtype="bfloat16", steps=2)
    initial = Dummy().initial_params(config.seed)
    held = held_params(Dummy(), initial, config.compute_dtype)
    rounded = {path for path, value in held.items() if value.dtype == jnp.bfloat16}
    assert rounded == {"tower/kernel", "tower/bias"}
    assert held_params(Dummy(), initial, "float32").items() == initial.items()
    result = exported(train(Dummy(), config, tmp_path / "run"))
    np.testing.assert_array_equal(result["tower.kernel"], initial["tower/kernel"])
    assert not np.array_equal(result["head.kernel"], initial["head/kernel"])
    trainable = trainable_paths(Dummy())
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)  # noqa: E731
    shapes = {path: shape(initial[path]) for path in trainable}
    frozen = {path: value for path, value in initial.items() if path not in trainable}
    trained = read_trained(tmp_path / "run", 2, shapes, digest(frozen))
    np.testing.assert_array_equal(trained["head/kernel"], result["head.kernel"])


def records(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def test_resume_is_bit_equal(tmp_path, straight):
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=3), CONFIG, tmp_path / "resumed")
    assert [r["step"] for r in records(tmp_path / "resumed")] == [1, 2, 3]
    resumed = exported(train(Dummy(), CONFIG, tmp_path / "resumed"))
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)
    logs = [records(workdir) for workdir in (straight, tmp_path / "resumed")]
    assert [r["step"] for r in logs[0]] == [r["step"] for r in logs[1]] == [1, 2, 3, 4]
    assert [r["loss"] for r in logs[0]] == [r["loss"] for r in logs[1]]
    assert {"grad_norm", "learning_rate", "largest", "images_per_s"} <= set(logs[0][0])


def test_steps_matter(tmp_path, straight):
    """The equality above is not that of untrained weights."""
    four = exported(straight / "model")
    two = exported(train(Dummy(), replace(CONFIG, steps=2), tmp_path / "two"))
    assert not np.array_equal(four["head.kernel"], two["head.kernel"])
    fresh = Dummy().initial_params(0)
    for name in ("tower.kernel", "shift"):
        np.testing.assert_array_equal(four[name], fresh[name.replace(".", "/")])


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2), MeshConfig(fsdp=8)])
def test_mesh_shapes_agree(tmp_path, straight, mesh, monkeypatch):
    monkeypatch.setattr("sammi_jax.parallel.mesh.MIN_SHARDED_BYTES", 1)
    one = exported(straight / "model")
    other = exported(train(Dummy(), replace(CONFIG, mesh=mesh), tmp_path / "other"))
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_resume_on_another_mesh(tmp_path, straight, monkeypatch):
    monkeypatch.setattr("sammi_jax.parallel.mesh.MIN_SHARDED_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=2), replace(CONFIG, mesh=MeshConfig(fsdp=8)), tmp_path / "run")
    folder = train(Dummy(), CONFIG, tmp_path / "run")
    expected = exported(straight / "model")
    for path, value in exported(folder).items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)


class Plain(Dummy):
    """Without noise: its loss is a mean over the batch."""

    def batch(self, step):
        rng = np.random.default_rng(step)
        x = rng.normal(size=(32, 5)).astype(np.float32)
        return Batch({"x": x, "y": x[:, :3] ** 2}, {"weight": np.float32([1.0, 2.0, 3.0])})

    def loss(self, model, batch, key):
        x, y = batch.examples["x"], batch.examples["y"]
        return (batch.shared["weight"][None] * (model(x) - y) ** 2).mean(), {
            "first": x[:, 0].mean()
        }


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=8)])
def test_parts_of_a_batch_add_up(tmp_path, mesh):
    """Four parts of a batch of 32 on 8 devices: the same losses, metrics and parameters."""
    config = replace(CONFIG, batch_size=32, mesh=mesh)
    whole = exported(train(Plain(), config, tmp_path / "whole"))
    parts = exported(train(Plain(), replace(config, accumulate=4), tmp_path / "parts"))
    for path, value in whole.items():
        np.testing.assert_allclose(value, parts[path], rtol=2e-5, atol=2e-6, err_msg=path)
    for name in ("loss", "first", "grad_norm"):
        a, b = ([r[name] for r in records(tmp_path / run)] for run in ("whole", "parts"))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def test_keeps_the_latest(tmp_path):
    train(Dummy(), replace(CONFIG, checkpoint_every=1, keep=2), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]


def _truncate(checkpoint):
    for file in (checkpoint / "state" / "d").iterdir():
        os.truncate(file, file.stat().st_size // 2)


DAMAGES = {
    "truncated data": _truncate,
    "no data": lambda checkpoint: shutil.rmtree(checkpoint / "state" / "d"),
    "no state": lambda checkpoint: shutil.rmtree(checkpoint / "state"),
    "no structure": lambda checkpoint: (checkpoint / "state/_METADATA").unlink(),
    "no index": lambda checkpoint: (checkpoint / "state/manifest.ocdbt").unlink(),
    "no metadata": lambda checkpoint: (checkpoint / "_CHECKPOINT_METADATA").unlink(),
    "other metadata": lambda checkpoint: (checkpoint / "_CHECKPOINT_METADATA").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_moved_away(tmp_path, straight, damage):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "model")
    damage(workdir / "checkpoints" / "4")
    with pytest.warns(UserWarning, match="checkpoints/4: damaged .* moved to") as caught:
        folder = train(Dummy(), CONFIG, workdir)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert records(workdir)[2]["loss"] == records(straight)[2]["loss"]
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, exported(folder)[path], err_msg=path)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    assert sorted(p.name for p in (workdir / "checkpoints-damaged").iterdir()) == ["4"]


@pytest.mark.parametrize("damage", [DAMAGES["truncated data"], DAMAGES["no metadata"]])
def test_all_checkpoints_damaged(tmp_path, straight, damage):
    shutil.copytree(straight, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint)
    with pytest.raises(SammiError, match=r"every checkpoint is damaged \(steps 2, 4\)"):
        train(Dummy(), CONFIG, tmp_path / "run")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_trainable_paths():
    assert trainable_paths(Dummy()) == ["head/bias", "head/kernel", "norm/bias", "norm/scale"]


def test_other_frozen_weights_raise_an_error(straight):
    class Other(Dummy):
        def initial_params(self, seed):
            params = super().initial_params(seed)
            return params | {"tower/kernel": params["tower/kernel"] + 1}

    with pytest.raises(SammiError, match="other frozen weights"):
        train(Other(), CONFIG, straight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, "batch_size=12"),
        ({"mesh": MeshConfig(fsdp=3)}, "mesh.fsdp=3"),
        ({"mesh": MeshConfig(slices=2)}, "mesh.slices=2, but the 8 devices are in 1 proc"),
        ({"mesh": MeshConfig(slices=0)}, "mesh.slices=0"),
        ({"batch_size": 24, "accumulate": 2}, "batch_size=24 .* 8 devices x accumulate=2"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"validation": ("os48/val_seen",)}, "a dummy experiment makes no label maps"),
    ],
)
def test_what_does_not_fit_the_devices(tmp_path, change, message):
    with pytest.raises(SammiError, match=message):
        train(Dummy(), replace(CONFIG, **change), tmp_path)


def test_a_schedule_that_does_not_fit_leaves_the_folder_free(tmp_path):
    warm = replace(CONFIG, optim=replace(CONFIG.optim, warmup_steps=CONFIG.steps))
    with pytest.raises(SammiError, match="give more steps"):
        train(Dummy(), warm, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_experiment_raises_an_error(straight):
    with pytest.raises(SammiError, match=r"optim\.peak_lr was 0\.01 and is 0\.1"):
        train(Dummy(), replace(CONFIG, optim=OptimConfig(peak_lr=0.1, clip_norm=1.0)), straight)


@pytest.fixture
def restores_sigterm():
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.mark.usefixtures("restores_sigterm")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_save_and_end(tmp_path, straight, number):
    rare = replace(CONFIG, checkpoint_every=100)
    asked = rf"asked to end \({number.name}\) after step [123] of 4; the state is saved"
    with pytest.raises(PreemptedError, match=asked):
        train(Dummy(sigterm=0, signal=number), rare, tmp_path)
    (saved,) = (int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert [r["step"] for r in records(tmp_path)] == list(range(1, saved + 1))
    resumed = exported(train(Dummy(), rare, tmp_path))
    assert [r["loss"] for r in records(tmp_path)] == [r["loss"] for r in records(straight)]
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, resumed[path], err_msg=path)


def test_sigterm_ends_as_before_outside_of_training(straight, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(Dummy(), replace(CONFIG, steps=1), tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_finished_run_says_where_the_model_is(straight):
    before = exported(straight / "model")
    assert train(Dummy(), CONFIG, straight) == straight / "model"
    assert before.keys() == exported(straight / "model").keys()


@pytest.mark.parametrize("every", [2, 3, 100])
def test_a_bad_state_is_never_saved(tmp_path, every):
    config = replace(CONFIG, steps=6, log_every=100, checkpoint_every=every)
    with pytest.raises(SammiError, match="step 3: the loss is not finite, on batch 2 of seed 0"):
        train(Dummy(poison=2), config, tmp_path)
    assert checkpoint_steps(tmp_path) == ([2] if every == 2 else [])


def test_an_exploding_loss_stops(tmp_path):
    config = replace(CONFIG, steps=30, max_loss_ratio=50.0, checkpoint_every=20)
    with pytest.raises(SammiError, match=r"step 26: the loss exploded to .* on batch 25 of seed 0"):
        train(Dummy(large=25), config, tmp_path)
    assert checkpoint_steps(tmp_path) == [20]
    folder = train(Dummy(large=25), replace(config, max_loss_ratio=None), tmp_path)
    assert folder.is_dir()


def test_what_is_logged(tmp_path):
    config = replace(CONFIG, steps=3, profile_steps=(2, 2))
    train(Dummy(), config, tmp_path)
    record = records(tmp_path)[-1]
    assert record["learning_rate_x0.5"] == record["learning_rate"] / 2
    assert 0.01 < record["peak_memory_gb"] < 100
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    with Image.open(tmp_path / "curves.png") as curves:
        assert (np.asarray(curves) == (31, 119, 180)).all(axis=-1).sum() > 500


def test_work_is_put_in_relation_to_the_devices(tmp_path, monkeypatch):
    """MFU = FLOPs of the step's products / time / peak."""
    monkeypatch.setitem(PEAK_FLOPS, jax.local_devices()[0].device_kind, 1e9)
    train(Dummy(), replace(CONFIG, steps=8, log_every=4), tmp_path)
    record = records(tmp_path)[-1]
    # forward 2 x 8 x (5 x 8 + 8 x 3); backward: the head's kernel and its input
    flops = 2 * 8 * (5 * 8 + 8 * 3) + 2 * (2 * 8 * 8 * 3)
    per_second = record["images_per_s"] / 8 * flops
    assert record["mfu"] == pytest.approx(per_second / (1e9 * jax.device_count()), rel=1e-6)
    assert 0.0 <= record["data_wait"] <= 1.0


class Clock:
    """Stands in for the module `time`: it only passes when told to."""

    def __init__(self):
        self.seconds = 100.0

    def perf_counter(self):
        return self.seconds

    def passes(self, seconds):
        self.seconds += seconds


def test_speed_and_waiting_for_data(tmp_path, monkeypatch):
    """A step that takes 1 s after 3 s of waiting; evaluation and saving count as neither."""
    clock = Clock()
    monkeypatch.setattr("sammi_jax.training.metrics_log.time", clock)
    log = Log(tmp_path, 0, CONFIG, {}, Startup())

    def batches():
        while True:
            clock.passes(3)
            yield "batch"

    waiting = log.waiting(batches())
    for step in (2, 4):
        for _ in range(2):
            next(waiting)
            clock.passes(1)
        log.write(step, {"loss": 1.0, "learning_rate": 0.1, "finite": True})
        clock.passes(10)
        log.add(step, {"miou": 0.5})
    log.close()
    written = [record for record in records(tmp_path) if "loss" in record]
    assert [record["step"] for record in written] == [2, 4]
    for record in written:
        assert record["data_wait"] == 0.75
        assert record["images_per_s"] == 2 * CONFIG.batch_size / 8
        assert "finite" not in record


class MonotonicClock(Clock):
    def monotonic(self):
        return self.seconds

    process_time = monotonic


def test_goodput_over_restarts(monkeypatch):
    """10 s of start and 90 of steps, of which 30 are lost; then 20 s of start and 60 of steps."""
    clock = MonotonicClock()
    monkeypatch.setattr("sammi_jax.training.goodput.time", clock)

    def process(past, start, starting, steps):
        """The records of a process whose steps take 30 s each."""
        with closing(Startup()) as startup:
            clock.passes(starting)
            startup.mark("import")
            goodput, records = Goodput(past, start, startup), []
            for step in steps:
                clock.passes(30)
                goodput.add(30.0)
                records.append({"step": step, **goodput.values()})
        return records

    first = process([], 0, 10, (1, 2, 3))
    assert [record["spent_s"] for record in first] == [40, 70, 100]
    assert [record["goodput"] for record in first] == pytest.approx([0.75, 60 / 70, 0.9])
    clock.passes(3600)  # no process runs
    second = process(first, 2, 20, (3, 4))
    assert [record["trained_s"] for record in second] == [90, 120]
    assert [record["spent_s"] for record in second] == [150, 180]
    assert second[-1]["goodput"] == pytest.approx(120 / 180)
    assert [record["restarts"] for record in first + second] == [0, 0, 0, 1, 1]
    other = process([{"step": 1, "loss": 1.0}], 1, 20, (2,))  # a log from before there was this
    assert (other[0]["trained_s"], other[0]["spent_s"], other[0]["restarts"]) == (30, 50, 0)


def test_the_start_is_taken_apart(tmp_path, capsys):
    """In the first record of each process, and on the terminal, whose last line is the goodput."""
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=3), CONFIG, tmp_path)
    train(Dummy(), CONFIG, tmp_path)
    found = records(tmp_path)
    started = [record for record in found if "start_s" in record]
    assert [record["step"] for record in started] == [1, 3]
    for record in started:
        parts = ("import", "devices", "model", "restore", "data", "trace", "compile", "step")
        seconds = [record[f"start_{part}_s"] for part in parts]
        assert min(seconds) >= 0.0
        assert record["start_s"] == pytest.approx(sum(seconds))
        cpu = [record[f"start_{part}_cpu_s"] for part in parts]
        assert min(cpu) >= 0.0
        assert record["start_cpu_s"] == pytest.approx(sum(cpu))
        assert record["start_cached"] >= 0.0
    for before, after in itertools.pairwise(found):
        assert after["trained_s"] > before["trained_s"]
        assert after["spent_s"] > before["spent_s"]
        assert 0.0 < after["goodput"] < 1.0
    assert [record["restarts"] for record in found] == [0, 0, 1, 1]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("first step after ") for line in lines) == 2
    assert re.fullmatch(
        r"goodput [\d.]+%: \d+ of \d+ s were steps that count \(1 restarts\)", lines[-1]
    )


class Scored(Validation):
    """A validation whose scores are given, by step; it keeps the parameters that it was shown."""

    def __init__(self, scores):
        self.scores, self.seen = scores, {}

    def due(self, step):
        return step in self.scores

    def __call__(self, params, step):
        self.seen[step] = jax.tree.map(np.asarray, params)
        return {"miou": self.scores[step], "miou/some set": self.scores[step]}


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, straight, monkeypatch):
    validation = Scored({1: 0.2, 2: 0.7, 3: 0.4, 4: 0.5})
    monkeypatch.setattr("sammi_jax.training.loop.Validation", lambda *_: validation)
    config = replace(CONFIG, checkpoint_every=1, keep=1, validation=("some set",))
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=3), config, tmp_path)
    last = exported(train(Dummy(), config, tmp_path))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    best = exported(tmp_path / "best")
    for path, value in exported(straight / "model").items():
        np.testing.assert_array_equal(value, last[path], err_msg=path)
        np.testing.assert_array_equal(best[path], validation.seen[2][path.replace(".", "/")])
    assert not np.array_equal(best["head.kernel"], last["head.kernel"])
    logged = [(r["step"], r["miou"]) for r in records(tmp_path) if "miou" in r]
    assert logged == list(validation.scores.items())


def test_a_torn_log_line_is_dropped(tmp_path, straight):
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "run" / "model")
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    train(Dummy(), CONFIG, tmp_path / "run")
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3, 4]


def test_tensorboard(tmp_path):
    train(Dummy(), replace(CONFIG, tensorboard=True), tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"learning_rate_x0.5" in file.read_bytes()


@pytest.mark.parametrize("steps", [(3,), (0, 2), (4, 3)])
def test_a_profile_window_that_is_none(tmp_path, steps):
    with pytest.raises(SammiError, match="profile_steps="):
        train(Dummy(), replace(CONFIG, profile_steps=steps), tmp_path)


def test_prefetch_hands_over_errors_and_ends():
    def make():
        yield from range(2)
        raise SammiError("broken")

    batches = prefetch(make())
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(SammiError, match="broken"):
        next(batches)
    assert list(prefetch(range(7))) == list(range(7))
    endless = prefetch(itertools.count())
    assert next(endless) == 0
    endless.close()
