import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sammi_jax.config.experiment import OptimConfig
from sammi_jax.errors import SammiError
from sammi_jax.parallel.mesh import fsdp_spec
from sammi_jax.training.optim import is_norm, make_optimizer, make_schedule

PARAMS = {
    "clip/query/kernel": jnp.array([1.0, -2.0]),
    "head/kernel": jnp.array([3.0, 0.5]),
    "head/bias": jnp.array([0.2]),
    "norm/scale": jnp.array([1.0]),
    "norm/bias": jnp.array([0.1]),
}
GRADS = {path: 0.3 * value + 0.1 for path, value in PARAMS.items()}
SCALES = {path: 0.01 if path.startswith("clip") else 1.0 for path in PARAMS}


def numpy_adamw(config, learning_rates, steps):
    """Torch's AdamW with decoupled decay, after clipping by the global norm."""
    params = {path: np.asarray(value, np.float64) for path, value in PARAMS.items()}
    grads = {path: np.asarray(value, np.float64) for path, value in GRADS.items()}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    factor = min(1.0, config.clip_norm / norm)
    first = {path: np.zeros_like(p) for path, p in params.items()}
    second = {path: np.zeros_like(p) for path, p in params.items()}
    for step in range(steps):
        for path, p in params.items():
            g, lr = factor * grads[path], learning_rates[step] * SCALES[path]
            first[path] = 0.9 * first[path] + 0.1 * g
            second[path] = config.b2 * second[path] + (1 - config.b2) * g**2
            m = first[path] / (1 - 0.9 ** (step + 1))
            v = second[path] / (1 - config.b2 ** (step + 1))
            decay = 0.0 if path.startswith("norm") else config.weight_decay
            params[path] = p - lr * (m / (np.sqrt(v) + 1e-8) + decay * p)
    return params


@pytest.mark.parametrize("clip_norm", [0.01, 100.0])
def test_against_numpy(clip_norm):
    config = OptimConfig(peak_lr=0.1, weight_decay=0.2, clip_norm=clip_norm)
    schedule, optimizer = make_schedule(config, 10), make_optimizer(config, 10, SCALES)
    state, params = optimizer.init(PARAMS), PARAMS
    for _ in range(3):
        updates, state = optimizer.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    expected = numpy_adamw(config, [float(schedule(i)) for i in range(3)], 3)
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=1e-4, err_msg=path)  # float32 moments


def test_schedule():
    plain = make_schedule(OptimConfig(peak_lr=2.0), 100)
    for step in (0, 1, 50, 99, 100):
        expected = 2.0 * 0.5 * (1 + np.cos(np.pi * step / 100))
        assert float(plain(step)) == pytest.approx(expected, abs=1e-6)
    warm = make_schedule(OptimConfig(peak_lr=2.0, warmup_steps=10), 100)
    assert [float(warm(i)) for i in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
    assert float(warm(100)) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(SammiError, match="give more steps"):
        make_schedule(OptimConfig(warmup_steps=10), 10)


def test_norms():
    assert [is_norm(path, PARAMS) for path in PARAMS] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("a/kernel", (2048, 4096), (None, "fsdp")),
        ("a/kernel", (4096, 2048), ("fsdp",)),
        ("a/kernel", (2048, 4095), ("fsdp",)),
        ("a/kernel", (2047, 4095), ()),
        ("a/kernel", (64, 64), ()),
        ("t/blocks/block/fc1/kernel", (64, 30, 4096), (None, None, "fsdp")),
        ("t/blocks/block/fc1/bias", (2048, 1023), ()),
    ],
)
def test_fsdp_rule(path, shape, spec):
    assert tuple(fsdp_spec(path, shape, 4, 4)) == spec
    assert tuple(fsdp_spec(path, shape, 4, 1)) == ()


def test_muon_orthogonalises_matrices_layer_by_layer(rng):
    """Kernels move by near-orthogonal steps, each layer of a stack alone; the rest by NAdamW."""
    shapes = {
        "a/kernel": (6, 4),
        "s/block/b/kernel": (3, 5, 5),
        "a/bias": (4,),
        "c/kernel": (3, 3, 2, 2),
    }
    params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    grads = {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in shapes.items()}
    config = OptimConfig(peak_lr=0.1, weight_decay=0.0, clip_norm=1e9, muon_ratio=2.0)
    optimizer = make_optimizer(config, 10, dict.fromkeys(params, 1.0))
    moves, _ = optimizer.update(grads, optimizer.init(params), params)
    nadamw = optax.adamw(make_schedule(config, 10), weight_decay=0.0, nesterov=True)
    expected, _ = nadamw.update(grads, nadamw.init(params), params)
    for path in ("a/bias", "c/kernel"):
        np.testing.assert_allclose(moves[path], expected[path], rtol=1e-5, err_msg=path)
    for matrix in (moves["a/kernel"], *moves["s/block/b/kernel"]):
        singular = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        assert singular.max() < 3 * singular.min()  # Newton-Schulz is approximate
