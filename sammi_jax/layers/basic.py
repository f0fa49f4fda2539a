"""Linear maps, convolutions and norms with PyTorch's initialization and constants.

Initialization is PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases,
because CAT-Seg's new layers start from it (docs/catseg.md part e).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.layers.convolution import conv
from sammi_jax.layers.init import uniform
from sammi_jax.typing import Array, Float


class Buffer(nnx.Variable):
    """A constant that belongs to the checkpoint and is never trained."""


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


# "gelu" is the exact (erf) form; Flax's own default is the tanh approximation.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
}


def _uniform(fan_in: int):
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return uniform(key, shape, bound).astype(dtype)

    return init


def linear(
    in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """`nnx.Linear` (kernel ``[in, out]``) with PyTorch's default initialization."""
    init = _uniform(in_features)
    return nnx.Linear(
        in_features, out_features, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs
    )


def layer_norm(dim: int, *, eps: float = 1e-5, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """`nnx.LayerNorm` over the last axis with PyTorch's eps and the two-pass variance."""
    return nnx.LayerNorm(dim, epsilon=eps, use_fast_variance=False, rngs=rngs)


def group_norm(dim: int, num_groups: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """`nnx.GroupNorm` over channels-last maps with PyTorch's eps and the two-pass variance."""
    return nnx.GroupNorm(
        dim, num_groups=num_groups, epsilon=1e-5, use_fast_variance=False, rngs=rngs
    )


class Conv(nnx.Module):
    """Square stride-1 convolution that keeps the size; kernel ``[k, k, in, out]``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        init = _uniform(in_features * kernel_size**2)
        shape = (kernel_size, kernel_size, in_features, out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(init(rngs.params(), (out_features,))) if use_bias else None

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w d"]:
        """Convolve the maps."""
        out = conv(x.reshape(-1, *x.shape[-3:]), jnp.asarray(self.kernel[...]))
        out = out.reshape(*x.shape[:-1], out.shape[-1])
        return out if self.bias is None else out + jnp.broadcast_to(self.bias[...], out.shape)


class PatchEmbed(nnx.Module):
    """Convolution whose stride is its kernel size, as one matrix product (fast on every backend).

    The kernel is ``[patch * patch * channels, dim]``, rows in (row, column, channel) order.
    """

    def __init__(
        self, patch_size: int, dim: int, *, channels: int = 3, use_bias: bool = True, rngs: nnx.Rngs
    ):
        self.patch_size = patch_size
        self.projection = linear(patch_size**2 * channels, dim, use_bias=use_bias, rngs=rngs)

    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Embed each patch; height and width must be multiples of the patch size."""
        p = self.patch_size
        image = image.astype(self.projection.kernel[...].dtype)  # pixels come in float32
        patches = rearrange(image, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        return self.projection(patches)


class TransposedConv(nnx.Module):
    """Transposed convolution whose stride is its kernel size: no overlap, so a matrix product.

    ``out[h*k + i, w*k + j, o] = bias[o] + sum_c x[h, w, c] kernel[c, i, j, o]``.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, *, rngs: nnx.Rngs):
        init = _uniform(out_features * stride**2)  # PyTorch's fan_in of a transposed convolution
        shape = (in_features, stride, stride, out_features)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(init(rngs.params(), (out_features,)))

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h2 w2 d"]:
        """Up-sample height and width by the stride."""
        kernel, bias = self.kernel[...], self.bias[...]
        stride = kernel.shape[1]
        out = x @ rearrange(kernel, "c i j d -> c (i j d)")
        out = rearrange(out, "... h w (i j d) -> ... (h i) (w j) d", i=stride, j=stride)
        return out + jnp.broadcast_to(bias, out.shape)

    def in_place(self, x: Float[Array, "*b c"]) -> Float[Array, "*b p d"]:
        """The ``p = stride**2`` cells that each cell becomes, row by row, beside each other.

        `__call__` without moving them to their place in the map.
        """
        kernel, bias = self.kernel[...], self.bias[...]
        out = x @ rearrange(kernel, "c i j d -> c (i j d)")
        out = rearrange(out, "... (p d) -> ... p d", d=kernel.shape[3])
        return out + jnp.broadcast_to(bias, out.shape)


class Mlp(nnx.Module):
    """``fc2(activation(fc1(x)))``; the activation is a key of `ACTIVATIONS`."""

    def __init__(self, dim: int, hidden_dim: int, *, activation: str, rngs: nnx.Rngs):
        self.activation = activation
        self.fc1 = linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = linear(hidden_dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Apply to the last axis."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))
