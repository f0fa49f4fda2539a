"""The decoder's two convolutions as one, against one after the other."""

import jax
import jax.numpy as jnp
import pytest

from sammi_jax.layers import upsampling
from sammi_jax.layers.upsampling import compose, upsampled_conv
from tests.parity import assert_parity


@pytest.fixture
def inputs(rng):
    shapes = (2, 5, 3, 24), (24, 2, 2, 18), (3, 3, 18, 16)
    return [0.2 * jnp.asarray(rng.normal(size=shape), "f") for shape in shapes]


def _both(x, up, kernel):
    return upsampled_conv(x, up, kernel, compose(up, kernel))


def _in_turn(x, up, kernel):
    return upsampling._in_turn(x, up, kernel, compose(up, kernel))


def test_values(inputs):
    """Of cells at the border as well, where the second convolution sees zeros."""
    assert_parity(jax.jit(_both)(*inputs), jax.jit(_in_turn)(*inputs), 1e-6, "maps")


def test_gradients(inputs):
    """Of the maps, and of both kernels through the one that is composed of them."""
    slopes = [
        jax.jit(jax.grad(lambda *x, form=form: jnp.sum(jnp.sin(form(*x))), (0, 1, 2)))(*inputs)
        for form in (_both, _in_turn)
    ]
    for ours, reference, name in zip(*slopes, ("x", "up", "kernel"), strict=True):
        assert_parity(ours, reference, 2e-6, name)


def test_one_convolution_on_cpus_alone(inputs):
    x, up, kernel = inputs

    def convolution(platform):
        exported = jax.export.export(jax.jit(_both), platforms=[platform])(x, up, kernel)
        lines = exported.mlir_module().splitlines()
        (line,) = [line for line in lines if "stablehlo.convolution(" in line]
        return line

    assert "tensor<2x2x24x64xf32>" in convolution("cpu")
    assert "tensor<3x3x18x16xf32>" in convolution("tpu")


def test_bfloat16_stays(inputs):
    low = [x.astype(jnp.bfloat16) for x in inputs]
    assert jax.eval_shape(_both, *low).dtype == jnp.bfloat16
