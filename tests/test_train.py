"""The loop on a dummy task: what it trains, and that resuming is exact."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.checkpoint import Checkpoints
from sammi_jax.data.loader import Batch, batch_indices, prefetch
from sammi_jax.errors import SammiError
from sammi_jax.experiment import MeshConfig, OptimConfig, TaskConfig, TrainConfig
from sammi_jax.layers import Buffer, layer_norm, linear
from sammi_jax.loop import train, trainable_paths
from sammi_jax.tasks.base import Task


class Net(nnx.Module):
    def __init__(self, rngs):
        self.tower = linear(5, 8, rngs=rngs)
        self.norm = layer_norm(8, rngs=rngs)
        self.head = linear(8, 3, rngs=rngs)
        self.shift = Buffer(jnp.arange(5.0))

    def __call__(self, x):
        return self.head(self.norm(jax.nn.relu(self.tower(x + self.shift[...]))))


@dataclass(frozen=True)
class DummyConfig(TaskConfig):
    kind = "dummy"


class Dummy(Task[Net]):
    """Regression with a noise from the step's key; ``fail_at`` breaks the data at a step."""

    def __init__(self, fail_at=None, poison=None):
        self.fail_at, self.poison = fail_at, poison

    def make(self, rngs):
        return Net(rngs)

    def is_trainable(self, path):
        return not path.startswith("tower")

    def lr_scale(self, path):
        return 0.5 if path.startswith("norm") else 1.0

    def batch(self, step):
        if step == self.fail_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(step)
        x = rng.normal(size=(8, 5)).astype(np.float32)
        if step == self.poison:
            x[0, 0] = np.nan
        return Batch({"x": x, "y": x[:, :3] ** 2}, {"weight": np.float32([1.0, 2.0, 3.0])})

    def loss(self, model, batch, key):
        x, y = batch.examples["x"], batch.examples["y"]
        error = model(x + 0.1 * jax.random.normal(key, x.shape)) - y
        loss = (batch.shared["weight"] * error**2).mean()
        return loss, {"largest": jnp.abs(error).max()}

    def export(self, params, folder):
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
    monkeypatch.setattr("sammi_jax.parallel.MIN_SHARDED_BYTES", 1)
    one = exported(straight / "model")
    other = exported(train(Dummy(), replace(CONFIG, mesh=mesh), tmp_path / "other"))
    for path, value in one.items():
        np.testing.assert_allclose(value, other[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_resume_on_another_mesh(tmp_path, straight, monkeypatch):
    monkeypatch.setattr("sammi_jax.parallel.MIN_SHARDED_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        train(Dummy(fail_at=2), replace(CONFIG, mesh=MeshConfig(fsdp=8)), tmp_path / "run")
    folder = train(Dummy(), CONFIG, tmp_path / "run")
    expected = exported(straight / "model")
    for path, value in exported(folder).items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_keeps_the_latest(tmp_path):
    train(Dummy(), replace(CONFIG, checkpoint_every=1, keep=2), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert Checkpoints(tmp_path, 2).latest_step == 4


def test_trainable_paths():
    assert trainable_paths(Dummy()) == ["head/bias", "head/kernel", "norm/bias", "norm/scale"]


def test_other_frozen_weights_are_refused(straight):
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
        ({"mesh": MeshConfig(data=3, fsdp=2)}, "mesh.data=3"),
    ],
)
def test_what_does_not_fit_the_devices(tmp_path, change, message):
    with pytest.raises(SammiError, match=message):
        train(Dummy(), replace(CONFIG, **change), tmp_path)


def test_another_experiment_is_refused(straight):
    with pytest.raises(SammiError, match=r"optim\.peak_lr was 0\.01 and is 0\.1"):
        train(Dummy(), replace(CONFIG, optim=OptimConfig(peak_lr=0.1, clip_norm=1.0)), straight)


def test_an_exploding_loss_stops(tmp_path):
    with pytest.raises(SammiError, match="step 2: the loss is not finite"):
        train(Dummy(poison=1), CONFIG, tmp_path)
    assert Checkpoints(tmp_path, 2).latest_step is None


def test_batch_indices():
    whole = np.concatenate([batch_indices(step, 4, 10, seed=3) for step in range(5)])
    assert sorted(whole[:10]) == sorted(whole[10:]) == list(range(10))
    assert whole[:10].tolist() != whole[10:].tolist()
    assert batch_indices(3, 4, 10, seed=3).tolist() == whole[12:16].tolist()
    assert batch_indices(0, 10, 10, seed=4).tolist() != whole[:10].tolist()


def test_prefetch_hands_over_errors_and_ends():
    def make(step):
        if step == 2:
            raise SammiError("broken")
        return step

    batches = prefetch(make, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(SammiError, match="broken"):
        next(batches)
    endless = prefetch(lambda step: step, range(10**9))
    assert next(endless) == 0
    endless.close()
