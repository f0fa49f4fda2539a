"""Pair of guided window-attention blocks: plain windows, then shifted windows.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py
(``WindowAttention``, ``SwinTransformerBlock``, ``SwinTransformerBlockWrapper``);
docs/catseg.md part c.
Queries and keys read the features and the appearance guidance, values the features only. There is
no relative position bias, and the attention mask of shifted windows adds -100, not minus infinity.
Deviations: tokens stay in window order for the whole block (norms and MLP act on each token), and
the guidance is projected once an image instead of once a class: equal up to rounding. On TPUs in
bfloat16 a block is a kernel (`sammi_jax.kernels.swin_block`).
"""

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.kernels.parts import serves
from sammi_jax.kernels.swin_block import Weights, fits, swin_block
from sammi_jax.layers.attention import dot_product_attention, merge_heads, split_heads
from sammi_jax.layers.basic import Mlp, layer_norm, linear
from sammi_jax.layers.guided import guided_linear
from sammi_jax.ops.sharding import by_device
from sammi_jax.ops.windows import shifted_window_mask, window_merge, window_partition
from sammi_jax.typing import Array, Float

MASK_BIAS = -100.0  # between tokens that were no neighbors before the shift
MLP_RATIO = 4


class WindowAttention(nnx.Module):
    """Softmax attention within each window, guided in queries and keys."""

    def __init__(self, dim: int, guidance_dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = linear(dim + guidance_dim, dim, rngs=rngs)
        self.key = linear(dim + guidance_dim, dim, rngs=rngs)
        self.value = linear(dim, dim, rngs=rngs)
        self.out = linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t n m c"],
        guidance: Float[Array, "b 1 n m g"],
        bias: Float[Array, "n m m"] | None = None,
    ) -> Float[Array, "b t n m c"]:
        """Attend among each window's ``m`` tokens; ``bias`` is added to the scores."""
        heads = dot_product_attention(
            split_heads(guided_linear(self.query, x, guidance), self.num_heads),
            split_heads(guided_linear(self.key, x, guidance), self.num_heads),
            split_heads(self.value(x), self.num_heads),
            bias=None if bias is None else bias[:, None],
        )
        return self.out(merge_heads(heads))


class SwinBlock(nnx.Module):
    """Window attention and MLP, each with a residual; windows are shifted if ``shifted``."""

    def __init__(
        self,
        dim: int,
        guidance_dim: int,
        num_heads: int,
        window: int,
        *,
        shifted: bool,
        rngs: nnx.Rngs,
    ):
        self.window = window
        self.shifted = shifted
        self.norm1 = layer_norm(dim, eps=1e-5, rngs=rngs)
        self.attention = WindowAttention(dim, guidance_dim, num_heads, rngs=rngs)
        self.norm2 = layer_norm(dim, eps=1e-5, rngs=rngs)
        self.mlp = Mlp(dim, MLP_RATIO * dim, activation="gelu", rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], guidance: Float[Array, "b h w g"]
    ) -> Float[Array, "b t h w c"]:
        """Transform each class's map; ``guidance`` (already normed) is shared by the classes."""
        height, width = x.shape[2:4]
        # A window that covers the shorter side is cut to it and not shifted.
        window = min(self.window, height, width)
        shift = window // 2 if self.shifted and window < min(height, width) else 0
        bias = None
        if shift:
            masked = shifted_window_mask(height, width, window, shift)
            bias = jnp.asarray(np.where(masked, MASK_BIAS, 0.0), jnp.float32)
        tokens = window_partition(x, window, shift)
        shared = window_partition(guidance, window, shift)[:, None]
        run = partial(self.run_plainly, bias=bias)
        if serves(tokens) and fits(*tokens.shape[3:]):
            in_kernel = partial(self.run_kernel, bias=bias)
            tokens = jax.lax.platform_dependent(tokens, shared, tpu=in_kernel, default=run)
        else:
            tokens = run(tokens, shared)
        return window_merge(tokens, (height, width), shift)

    def run_plainly(
        self,
        tokens: Float[Array, "b t n m c"],
        shared: Float[Array, "b 1 n m g"],
        bias: Float[Array, "n m m"] | None,
    ) -> Float[Array, "b t n m c"]:
        """The block on each window, for any device."""
        tokens = tokens + self.attention(self.norm1(tokens), shared, bias)
        return tokens + self.mlp(self.norm2(tokens))

    def run_kernel(
        self,
        tokens: Float[Array, "b t n m c"],
        shared: Float[Array, "b 1 n m g"],
        bias: Float[Array, "n m m"] | None,
        *,
        interpret: bool = False,
    ) -> Float[Array, "b t n m c"]:
        """`run_plainly` by the kernel for TPUs."""
        attention, mlp, dim = self.attention, self.mlp, tokens.shape[-1]
        row = lambda param: cast(nnx.Param, param)[...][None]  # noqa: E731

        def guide(layer: nnx.Linear) -> Array:
            guided = jnp.matmul(shared[:, 0], layer.kernel[...][dim:])
            return guided + jnp.broadcast_to(row(layer.bias), guided.shape)

        own = [layer.kernel[...][:dim] for layer in (attention.query, attention.key)]
        weights = Weights(
            row(self.norm1.scale),
            row(self.norm1.bias),
            jnp.concatenate([*own, attention.value.kernel[...]], axis=1),
            row(attention.value.bias),
            attention.out.kernel[...],
            row(attention.out.bias),
            row(self.norm2.scale),
            row(self.norm2.bias),
            mlp.fc1.kernel[...],
            row(mlp.fc1.bias),
            mlp.fc2.kernel[...],
            row(mlp.fc2.bias),
        )
        batched = (tokens, guide(attention.query), guide(attention.key))
        block = lambda *args: swin_block(*args, attention.num_heads, interpret)  # noqa: E731
        return by_device(block, batched, bias, weights)


class SpatialAggregation(nnx.Module):
    """Both blocks of one layer on the map of each class, guided by the image's appearance."""

    def __init__(self, dim: int, guidance_dim: int, num_heads: int, window: int, *, rngs: nnx.Rngs):
        self.guidance_norm = layer_norm(guidance_dim, eps=1e-5, rngs=rngs)
        self.blocks = nnx.List(
            [
                SwinBlock(dim, guidance_dim, num_heads, window, shifted=shifted, rngs=rngs)
                for shifted in (False, True)
            ]
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], appearance: Float[Array, "b h w g"]
    ) -> Float[Array, "b t h w c"]:
        """Aggregate over space; ``appearance`` is the projected guidance, not yet normed."""
        guidance = self.guidance_norm(appearance)
        for block in self.blocks:
            x = block(x, guidance)
        return x
