"""SAM's image encoder: a ViT with windowed and global attention and relative positions.

Original: facebookresearch/segment-anything, segment_anything/modeling/image_encoder.py
(Kirillov et al. 2023, section 3; the backbone is Li et al., ViTDet, 2022; the decomposed relative
positions are MViTv2's, Li et al. 2022, equation 4).

Deviations: channels last; query, key and value have their own kernels; equal blocks are stacked
and scanned (stages of windowed blocks followed by one global block); large attention maps are
processed in blocks of queries, so that they are never held whole.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.kernels import layer_norm as layer_norm_kernel
from sammi_jax.kernels.parts import serves
from sammi_jax.kernels.window_attention import fits
from sammi_jax.layers import Conv, Mlp, PatchEmbed, Stack, layer_norm, linear
from sammi_jax.models.sam.relative_attention import (
    decomposed_attention,
    fitted_table,
    relative_positions,
)
from sammi_jax.models.sam.window_attention import (
    cut_normed_windows,
    join_windows,
    kernel_attention,
    window_attention,
)
from sammi_jax.ops.sharding import by_device
from sammi_jax.typing import Array, Float

EPS = 1e-6  # of every norm here, as in the original's build_sam.py and LayerNorm2d


class RelativeAttention(nnx.Module):
    """Self-attention with decomposed relative positions: in windows, or over the whole square map.

    Args:
        dim: channels.
        num_heads: heads.
        size: side of the map, or of a window.
        windowed: whether maps are cut into windows.
    """

    def __init__(self, dim: int, num_heads: int, size: int, *, windowed: bool, rngs: nnx.Rngs):
        self.num_heads, self.size, self.windowed = num_heads, size, windowed
        self.query = linear(dim, dim, rngs=rngs)
        self.key = linear(dim, dim, rngs=rngs)
        self.value = linear(dim, dim, rngs=rngs)
        self.out = linear(dim, dim, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * size - 1, dim // num_heads)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * size - 1, dim // num_heads)))

    def __call__(self, x: Float[Array, "b h w c"], norm: nnx.LayerNorm) -> Float[Array, "b h w c"]:
        """Attend within each map or window of ``norm(x)``."""
        if self.windowed:
            return self.out(self._in_windows(x, norm))
        return self.out(self._everywhere(map_norm(norm, x)))

    def _positions(self, height: int, width: int) -> tuple[Array, Array]:
        rel_h = relative_positions(self.rel_pos_h[...], height)
        return rel_h, relative_positions(self.rel_pos_w[...], width)

    def _everywhere(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        query, key, value = (
            rearrange(project(x), "b h w (n d) -> b n h w d", n=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        heads = decomposed_attention(query, key, value, *self._positions(*x.shape[1:3]))
        return rearrange(heads, "b n h w d -> b h w (n d)")

    def _in_windows(
        self, x: Float[Array, "b h w c"], norm: nnx.LayerNorm
    ) -> Float[Array, "b h w c"]:
        def plain(x: Array) -> Array:
            return self._in_rows(norm(x))

        dim = x.shape[-1] // self.num_heads
        if serves(x) and fits(self.size, dim) and layer_norm_kernel.windows_fit(x.shape[2]):
            return jax.lax.platform_dependent(x, tpu=partial(self._in_kernel, norm), default=plain)
        return plain(x)

    def _in_kernel(
        self, norm: nnx.LayerNorm, x: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        def cut(x: Array, scale: Array, bias: Array) -> Array:
            return cut_normed_windows(x, scale, bias, norm.epsilon, self.size)

        windows = by_device(cut, (x,), *_parameters(norm))
        projected = (self.query(windows), self.key(windows), self.value(windows))
        tables = (fitted_table(t[...], self.size) for t in (self.rel_pos_h, self.rel_pos_w))
        heads = by_device(kernel_attention, projected, *tables)
        return join_windows(heads, self.size, (x.shape[1], x.shape[2]))

    def _in_rows(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        layers = (self.query, self.key, self.value)
        query, key, value = (jnp.matmul(x, layer.kernel[...]) for layer in layers)
        bias = jnp.stack([cast(nnx.Param, layer.bias)[...] for layer in layers])
        return window_attention((query, key, value), bias, *self._positions(self.size, self.size))


def map_norm(norm: nnx.LayerNorm, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """``norm(x)``, the norm of the channels of each cell; on TPUs in bfloat16 a kernel."""
    if serves(x) and layer_norm_kernel.fits(x.shape[1] * x.shape[2], x.shape[3]):
        in_kernel = partial(norm_in_kernel, norm)
        return jax.lax.platform_dependent(x, tpu=in_kernel, default=norm)
    return norm(x)


def norm_in_kernel(
    norm: nnx.LayerNorm, x: Float[Array, "b h w c"], *, interpret: bool = False
) -> Float[Array, "b h w c"]:
    """`map_norm` by the kernel for TPUs."""

    def rows(x: Array, scale: Array, bias: Array) -> Array:
        found: Any = layer_norm_kernel.layer_norm(
            x.reshape(-1, x.shape[-1]), scale, bias, norm.epsilon, interpret
        )
        return found.reshape(x.shape)

    return by_device(rows, (x,), *_parameters(norm))


def _parameters(norm: nnx.LayerNorm) -> list[Array]:
    return [cast(nnx.Param, param)[...] for param in (norm.scale, norm.bias)]


class EncoderBlock(nnx.Module):
    """Pre-norm transformer block; attention in windows, or global where ``window_size`` is 0."""

    def __init__(self, config: SamConfig, window_size: int, *, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, eps=EPS, rngs=rngs)
        self.attention = RelativeAttention(
            config.width,
            config.num_heads,
            window_size or config.grid_size,
            windowed=window_size > 0,
            rngs=rngs,
        )
        self.norm2 = layer_norm(config.width, eps=EPS, rngs=rngs)
        self.mlp = Mlp(config.width, config.width * config.mlp_ratio, activation="gelu", rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply attention and MLP, each with its residual."""
        x = x + self.attention(x, self.norm1)
        return x + self.mlp(map_norm(self.norm2, x))


class Neck(nnx.Module):
    """1 x 1 and 3 x 3 convolution, each followed by a norm over the channels."""

    def __init__(self, dim: int, out_channels: int, *, rngs: nnx.Rngs):
        self.conv1 = linear(dim, out_channels, use_bias=False, rngs=rngs)
        self.norm1 = layer_norm(out_channels, eps=EPS, rngs=rngs)
        self.conv2 = Conv(out_channels, out_channels, 3, use_bias=False, rngs=rngs)
        self.norm2 = layer_norm(out_channels, eps=EPS, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Map the last block's output to the image embedding."""
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class ImageEncoder(nnx.Module):
    """Image to image embedding.

    The blocks are held as two stacks, all windowed ones and all global ones, in the order in which
    they run: ``num_layers / num_stages - 1`` windowed blocks (perhaps none), one global, and again.
    """

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs):
        self.num_stages = config.num_stages
        num_windowed = config.num_layers - config.num_stages
        self.patch_embed = PatchEmbed(config.patch_size, config.width, rngs=rngs)
        self.pos_embed = nnx.Param(jnp.zeros((config.grid_size, config.grid_size, config.width)))
        make = lambda window: lambda r: EncoderBlock(config, window, rngs=r)  # noqa: E731
        self.windowed_blocks = (
            Stack(make(config.window_size), num_windowed, rngs=rngs) if num_windowed else None
        )
        self.global_blocks = Stack(make(0), config.num_stages, rngs=rngs)
        self.neck = Neck(config.width, config.out_channels, rngs=rngs)

    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b g g c"]:
        """Encode normalized, padded images of side ``image_size``."""
        x = self.patch_embed(image) + self.pos_embed[None]
        return self.neck(self._run_stages(x))

    def _run_stages(self, x: Float[Array, "b g g c"]) -> Float[Array, "b g g c"]:
        stacks = [stack for stack in (self.windowed_blocks, self.global_blocks) if stack]
        graphdefs, states = zip(*(nnx.split(stack.block) for stack in stacks), strict=True)
        return _run_blocks(x, states, graphdefs, self.num_stages)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _run_blocks(x: Array, states: Any, graphdefs: Any, num_stages: int) -> Array:
    """Run the stages: of each stack of blocks its share, one stack after the other.

    Each block's parameters are picked from the whole stack. Cut into stages first, as the gradient
    has it, every stage would copy its share: a tenth of a frozen encoder's time on a TPU.
    """

    def stage(x: Array, index: Array) -> tuple[Array, None]:
        for graphdef, state in zip(graphdefs, states, strict=True):
            count = len(jax.tree.leaves(state)[0]) // num_stages

            def block(x: Array, place: Array, graphdef=graphdef, state=state) -> tuple[Array, None]:
                own = jax.tree.map(
                    lambda leaf: jax.lax.dynamic_index_in_dim(leaf, place, keepdims=False), state
                )
                return nnx.merge(graphdef, own)(x), None

            x, _ = jax.lax.scan(block, x, index * count + jnp.arange(count))
        return x, None

    return jax.lax.scan(stage, x, jnp.arange(num_stages))[0]


def _run_slices(x: Array, states: Any, graphdefs: Any, num_stages: int) -> Array:
    """`_run_blocks` whose gradient is one slice of the stack's for each block."""
    by_stage = jax.tree.map(lambda leaf: leaf.reshape(num_stages, -1, *leaf.shape[1:]), states)

    def stage(x: Array, stage_states: tuple[Any, ...]) -> tuple[Array, None]:
        for graphdef, blocks in zip(graphdefs, stage_states, strict=True):
            x, _ = jax.lax.scan(
                lambda x, block, graphdef=graphdef: (nnx.merge(graphdef, block)(x), None),
                x,
                blocks,
            )
        return x, None

    return jax.lax.scan(stage, x, by_stage)[0]


def _forward(x, states, graphdefs, num_stages):
    return jax.vjp(partial(_run_slices, graphdefs=graphdefs, num_stages=num_stages), x, states)


def _backward(graphdefs, num_stages, pull, gradient):
    del graphdefs, num_stages
    return pull(gradient)


_run_blocks.defvjp(_forward, _backward)
