"""Initial values, drawn on the host where that is possible.

A program that draws a large model's parameters with JAX's generator takes minutes to compile on a
CPU, and most parameters are overwritten by a checkpoint anyway. Outside a trace the values come
from numpy: the same on every platform. Inside one (`jax.jit`, `nnx.eval_shape`) they come from JAX.
"""

import jax
import jax.core
import numpy as np
from flax import nnx

from sammi_jax.typing import Array


class Keys(nnx.Rngs):
    """The same keys as `nnx.Rngs`, counted by a Python integer.

    Flax counts with an array. Under a trace this costs seconds for a whole model: each increment
    asks the tracer for its sharding, and JAX searches the program so far for the text of an error
    that Flax then drops.
    """

    def __init__(self, key: int | Array):
        self._key = jax.random.key(key) if isinstance(key, int) else key
        self._count = 0

    def params(self) -> Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


def is_traced(key: Array) -> bool:
    """Whether the key belongs to a program that is being traced."""
    return isinstance(key, jax.core.Tracer)


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def uniform(key: Array, shape: tuple[int, ...], bound: float) -> Array:
    """float32 values of U(-bound, bound)."""
    if is_traced(key):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return jax.numpy.asarray(_generator(key).uniform(-bound, bound, shape).astype(np.float32))


def normal(key: Array, shape: tuple[int, ...], std: float = 1.0) -> Array:
    """float32 values of N(0, std^2)."""
    if is_traced(key):
        return std * jax.random.normal(key, shape)
    return jax.numpy.asarray((std * _generator(key).standard_normal(shape)).astype(np.float32))
