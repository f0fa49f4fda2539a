"""How a step computes: rematerialized, in bfloat16, and how many FLOPs that are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from sammi_jax.config.experiment import SegmentConfig, TrainConfig
from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.training.flops import count_flops, count_flops_by_part
from sammi_jax.training.state import make_loss, trainable_paths
from sammi_jax.training.tasks import make_task

TASK = SegmentConfig(model=SEGMENTER_SIZES["openshapes"], num_classes=5)


def losses(task_config, dtype):
    task = make_task(TrainConfig(task=task_config, batch_size=1))
    params = task.initial_params(0)
    paths = trainable_paths(task)
    frozen = {path: value for path, value in params.items() if path not in paths}
    loss = make_loss(task, dtype)

    batch = jax.tree.map(jnp.asarray, task.batch(0))

    def value(trainable):
        return loss({**frozen, **trainable}, batch, jax.random.key(0))[0]

    return jax.value_and_grad(value), {path: params[path] for path in paths}


def norm(tree):
    return np.sqrt(sum(float(jnp.vdot(x, x)) for x in jax.tree.leaves(tree)))


@pytest.mark.slow
def test_remat_and_bfloat16_change_only_the_rounding():
    function, trainable = losses(TASK, "float32")
    value, grads = jax.jit(function)(trainable)
    for policy in ("elementwise", "full"):
        remat, _ = losses(replace(TASK, remat=policy), "float32")
        again, remat_grads = jax.jit(remat)(trainable)
        assert float(again) == pytest.approx(float(value), rel=1e-6)
        difference = jax.tree.map(jnp.subtract, remat_grads, grads)
        assert norm(difference) <= 1e-5 * norm(grads)
    low, _ = losses(TASK, "bfloat16")
    low_value, low_grads = jax.jit(low)(trainable)
    assert all(grad.dtype == jnp.float32 for grad in low_grads.values())
    assert low_value.dtype == jnp.float32
    assert float(low_value) == pytest.approx(float(value), rel=0.02)
    assert float(low_value) != float(value), "it did not compute in bfloat16"
    assert norm(jax.tree.map(jnp.subtract, low_grads, grads)) <= 0.1 * norm(grads)


def products(jaxpr, found):
    """FLOPs of matrix products and convolutions by operand type."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            kind = str(equation.invars[0].aval.dtype)
            found[kind] = found.get(kind, 0) + equation.outvars[0].aval.size
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    products(inner, found)
    return found


def test_bfloat16_reaches_the_products():
    function, trainable = losses(TASK, "bfloat16")
    shares = products(jax.make_jaxpr(function)(trainable).jaxpr, {})
    assert shares["bfloat16"] > 0.9 * (shares["bfloat16"] + shares["float32"])


def test_remat_computes_more():
    """All products but SAM's, which has no gradient; "elementwise" none."""
    flops = {}
    for policy in ("none", "elementwise", "full"):
        function, trainable = losses(replace(TASK, remat=policy), "float32")
        flops[policy] = count_flops(function, trainable)
    assert 1.1 < flops["full"] / flops["none"] < 1.6
    assert flops["elementwise"] == flops["none"]


def test_count_flops():
    a, b = jnp.zeros((4, 5)), jnp.zeros((5, 6))
    assert count_flops(jnp.dot, a, b) == 2 * 4 * 5 * 6
    image, kernel = jnp.zeros((1, 10, 10, 3)), jnp.zeros((3, 3, 3, 8))
    numbers = ("NHWC", "HWIO", "NHWC")
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=numbers
    )
    assert count_flops(convolve, image, kernel) == 2 * 100 * 9 * 3 * 8

    def scanned(a, b):
        return jax.lax.scan(lambda carry, _: (carry, jnp.dot(a, b)), 0, None, length=7)

    assert count_flops(scanned, a, b) == 7 * 2 * 4 * 5 * 6


def test_flops_by_part():
    """The innermost scope counts, also around a loop, and the backward pass for itself."""
    x, weights, last = jnp.zeros((4, 5)), jnp.zeros((5, 5)), jnp.zeros((5, 6))

    def loss(x):
        with jax.named_scope("outer"), jax.named_scope("tower"):
            step = lambda x, _: (jnp.sin(jnp.dot(x, weights)), None)  # noqa: E731
            x, _ = jax.lax.scan(step, x, None, length=3)
        return jnp.dot(x, last).sum()

    function = jax.value_and_grad(loss)
    found = count_flops_by_part(function, x, scopes=["outer", "tower"])
    tower, other = 3 * 2 * 4 * 5 * 5, 2 * 2 * 4 * 5 * 6
    assert found == {"tower": tower, "tower backward": tower, "other": other}
    assert sum(found.values()) == count_flops(function, x)


def test_flops_of_a_kernel_count_for_each_block():
    def kernel(x, y, out):
        out[...] = jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)

    def call(x, y):
        block = pl.BlockSpec((8, 16), lambda i: (i, 0))
        whole = pl.BlockSpec((16, 16), lambda i: (0, 0))
        shape = jax.ShapeDtypeStruct((32, 16), jnp.float32)
        return pl.pallas_call(
            kernel, grid=(4,), in_specs=[block, whole], out_specs=block, out_shape=shape
        )(x, y)

    assert count_flops(call, jnp.zeros((32, 16)), jnp.zeros((16, 16))) == 2 * 32 * 16 * 16
