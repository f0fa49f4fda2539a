"""What kernels of transformer blocks share: products, norms, and their gradients, in float32."""

import jax
import jax.numpy as jnp

from sammi_jax.typing import Array

EPS = 1e-5  # of norms
LANES = 128  # channels of a tile
ROWS = 16  # rows of a tile in bfloat16
SUBLANES = 8  # the same in float32
VMEM = 64 * 2**20  # bytes of on-chip memory that a kernel may use; the smallest chip has 128 MiB


def serves(x: Array) -> bool:
    """Whether kernels are for such an array: in bfloat16, and of known shape.

    `jax.export` may leave sizes open; then the plain forms serve TPUs as well.
    """
    return x.dtype == jnp.bfloat16 and all(isinstance(side, int) for side in x.shape)


def f32(x):
    """Values as float32."""
    return x.astype(jnp.float32)


def dot(a, b):
    """``a @ b``."""
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def dot_t(a, b):
    """``a @ b.T``."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def t_dot(a, b):
    """``a.T @ b``."""
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def row_sum(x):
    """The sum over rows, as a row."""
    return jnp.sum(x, axis=0, keepdims=True)


def normalize(x, eps=EPS):
    """Rows with mean 0 and variance 1, and what they were multiplied by."""
    centered = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + eps)
    return centered * inverse, inverse


def normalize_backward(gradient, hat, inverse):
    """The gradient of the rows that `normalize` was given, for that of ``hat``."""
    mean = jnp.mean(gradient, axis=1, keepdims=True)
    along = jnp.mean(gradient * hat, axis=1, keepdims=True)
    return (gradient - mean - hat * along) * inverse
