"""The convolution with a kernel gradient of products, against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sammi_jax.layers.convolution import conv
from sammi_jax.parallel.mesh import AXES
from tests.parity import assert_parity


def _gradients(x, kernel, padding):
    def loss(convolve):
        def value(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        return jax.jit(jax.grad(value, (0, 1)))

    def plain(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=dimensions
        )

    ours = loss(lambda x, kernel: conv(x, kernel, padding))
    return ours(x, kernel), loss(plain)(x, kernel)


@pytest.mark.parametrize(
    ("maps", "kernel", "padding"),
    [
        ((3, 8, 6, 16), (3, 3, 16, 20), "SAME"),
        ((2, 9, 9, 17), (7, 7, 17, 16), "SAME"),
        ((2, 5, 7, 16), (1, 1, 16, 16), "SAME"),
        ((3, 8, 6, 16), (2, 2, 16, 20), "VALID"),
        ((3, 8, 6, 16), (3, 3, 16, 20), "VALID"),
        ((3, 8, 6, 2), (3, 3, 2, 20), "SAME"),  # few channels: XLA's
    ],
)
def test_gradients(maps, kernel, padding, rng):
    x, kernel = (jnp.asarray(rng.normal(size=shape), "f") for shape in (maps, kernel))
    ours, reference = _gradients(x, kernel, padding)
    for a, b, name in zip(ours, reference, ("maps", "kernel"), strict=True):
        assert_parity(a, b, 1e-6, name)


def test_the_gradient_is_of_products(rng):
    """On a CPU alone: elsewhere XLA's convolution is the faster one."""
    x, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))
    run = jax.jit(jax.grad(lambda k: jnp.sum(jnp.square(conv(x, k)))))
    count = lambda platform: (  # noqa: E731
        jax.export.export(run, platforms=[platform])(kernel).mlir_module().count("convolution(")
    )
    assert count("cuda") == count("cpu") + 1


def test_sums_are_in_float32(rng):
    """In bfloat16, ten thousand products of one sign would stop growing at 256."""
    x, kernel = jnp.ones((2, 64, 64, 16), jnp.bfloat16), jnp.zeros((1, 1, 16, 16), jnp.bfloat16)
    slope = jax.vjp(lambda k: conv(x, k), kernel)[1](jnp.ones((2, 64, 64, 16), jnp.bfloat16))[0]
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slope.astype(np.float32), 8192.0)


def test_each_device_adds_its_share(rng):
    """Split over eight devices: the sum, and no device sees the others' maps."""
    mesh = jax.make_mesh((8, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)
    x, kernel, slope = (
        jnp.asarray(rng.normal(size=shape), "f")
        for shape in ((8, 6, 6, 16), (3, 3, 16, 16), (8, 6, 6, 16))
    )

    def gradient(x, slope):
        return jax.vjp(lambda k: conv(x, k), kernel)[1](slope)[0]

    expected = jax.jit(gradient)(x, slope)
    with jax.set_mesh(mesh):
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXES))
        program = jax.jit(gradient).lower(*jax.device_put((x, slope), spec)).compile()
        found = program(*jax.device_put((x, slope), spec))
    assert_parity(found, expected, 1e-6, "shares")
    text = str(program.as_text())
    assert "all-reduce" in text
    assert "all-gather" not in text
