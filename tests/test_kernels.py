"""TPU kernels, interpreted on the CPU, against the plain forms: results and gradients."""

from functools import partial

import jax
import jax.numpy as jnp

from sammi_jax.models.sam.relative_attention import relative_positions
from sammi_jax.models.sam.window_attention import (
    cut_windows,
    join_windows,
    kernel_attention,
    window_attention,
)
from sammi_jax.ops.sharding import by_device
from tests.parity import assert_parity


def normal(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def assert_same(ours, reference, rel_l2=1e-5):
    """Equal trees, leaf by leaf."""
    ours, reference = jax.tree.flatten(ours), jax.tree.flatten(reference)
    assert ours[1] == reference[1]
    for one, other in zip(ours[0], reference[0], strict=True):
        assert_parity(one, other, rel_l2)


def attention_case():
    """Maps of 5 x 4 cells, whose windows of 3 reach over the edge."""
    window, dim, channels = 3, 8, 16
    x, weights = normal(0, (2, 5, 4, channels), (3, channels, channels))
    bias, rel_h, rel_w = normal(1, (3, channels), (2 * window - 1, dim), (2 * window - 1, dim))

    def plain(x, weights, bias, rel_h, rel_w):
        maps = tuple(x @ w for w in weights)
        tables = (relative_positions(table, window) for table in (rel_h, rel_w))
        return window_attention(maps, bias, *tables)

    def kernel(x, weights, bias, rel_h, rel_w):
        windows = cut_windows(x, window)
        projected = tuple(windows @ w + b for w, b in zip(weights, bias, strict=True))
        heads = by_device(partial(kernel_attention, interpret=True), projected, rel_h, rel_w)
        return join_windows(heads, window, (5, 4))

    return plain, kernel, (x, weights, bias, rel_h, rel_w)


def test_attention_in_windows():
    plain, kernel, inputs = attention_case()
    assert_parity(kernel(*inputs), plain(*inputs))


def test_gradient_of_attention_in_windows():
    """It is the plain form's."""
    plain, kernel, inputs = attention_case()
    gradients = [
        jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2, 3, 4))(*inputs)
        for f in (kernel, plain)
    ]
    assert_same(*gradients)
