"""TPU kernels, interpreted on the CPU, against the plain forms: results and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sammi_jax.kernels.window_attention import ROW
from sammi_jax.models.sam.window_attention import (
    attend_windows_plainly,
    cut_windows,
    join_windows,
    kernel_attention,
    window_attention,
)
from sammi_jax.models.sam.relative_attention import relative_positions
from tests.parity import assert_parity


def normal(seed, *shapes, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


def test_attention_in_windows():
    """Maps of 5 x 4 cells in windows of 3: the whole way from cutting to joining."""
    window, dim, channels = 3, 8, 16
    x, wq, wk, wv = normal(0, (2, 5, 4, channels), *[(channels, channels)] * 3)
    bias, rel_h, rel_w = normal(1, (3, channels), (2 * window - 1, dim), (2 * window - 1, dim))
    maps = tuple(x @ w for w in (wq, wk, wv))
    tables = tuple(relative_positions(table, window) for table in (rel_h, rel_w))
    expected = window_attention(maps, bias, *tables)
    windows = cut_windows(x, window)
    projected = [windows @ w + b for w, b in zip((wq, wk, wv), bias, strict=True)]
    heads = kernel_attention(*projected, rel_h, rel_w, True)
    assert_parity(join_windows(heads, window, (5, 4)), expected)
