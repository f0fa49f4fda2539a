"""The decoder's blocks: each class's map up-sampled four times, and its logits.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py (``Up``,
``Aggregator.conv_decoder``); docs/catseg.md part c. The masks' evidence between the blocks is
[ours]. On TPUs in bfloat16 a block is a kernel (`sammi_jax.kernels.decoder_block`).
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.kernels.decoder_block import (
    Patches,
    Sizes,
    Weights,
    decoder_block,
    fits,
    tiled_kernel,
)
from sammi_jax.kernels.parts import serves
from sammi_jax.layers import Conv, TransposedConv, group_norm
from sammi_jax.layers.convolution import conv
from sammi_jax.layers.space_to_depth import (
    convolution_taps,
    depth_to_space,
    neighborhood_kernel,
    neighborhoods,
    space_to_depth,
    spread_conv,
    spread_kernel,
    upsampling_taps,
)
from sammi_jax.layers.upsampling import compose, upsampled_conv
from sammi_jax.models.dmi import Evidence
from sammi_jax.ops.sharding import by_device
from sammi_jax.typing import Array, Float

GROUP_SIZE = 16  # channels in a group of the norms


class DecoderBlock(nnx.Module):
    """Doubles the side: transposed convolution, guidance appended, two convolutions with norms."""

    def __init__(self, in_dim: int, guidance_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        groups = max(out_dim // GROUP_SIZE, 1)
        self.up = TransposedConv(in_dim, in_dim - guidance_dim, 2, rngs=rngs)
        self.conv1 = Conv(in_dim, out_dim, 3, use_bias=False, rngs=rngs)
        self.norm1 = group_norm(out_dim, groups, rngs=rngs)
        self.conv2 = Conv(out_dim, out_dim, 3, use_bias=False, rngs=rngs)
        self.norm2 = group_norm(out_dim, groups, rngs=rngs)

    @property
    def out_dim(self) -> int:
        """Channels of the result."""
        return self.conv2.kernel.shape[-1]

    def share(self, guidance: Float[Array, "b h2 w2 g"]) -> "SharedByClasses":
        """Compute what does not depend on the class."""
        up, bias, kernel = self.up.kernel[...], self.up.bias[...], self.conv1.kernel[...]
        width = bias.shape[0]
        bias = jnp.broadcast_to(bias, (*guidance.shape[:-1], width))
        added = conv(jnp.concatenate([bias, guidance], axis=-1), jnp.asarray(kernel))
        return SharedByClasses(added, compose(up, kernel[:, :, :width]))

    def __call__(
        self, x: Float[Array, "b t h w c"], shared: "SharedByClasses"
    ) -> Float[Array, "b t h2 w2 d"]:
        """Decode each class's map."""
        batch, up = x.shape[0], self.up.kernel[...]
        kernel = self.conv1.kernel[...][:, :, : up.shape[-1]]
        x = upsampled_conv(rearrange(x, "b t h w c -> (b t) h w c"), up, kernel, shared.composed)
        x = rearrange(x, "(b t) h w c -> b t h w c", b=batch) + shared.added[:, None]
        x = rearrange(x, "b t h w c -> (b t) h w c")  # a norm's statistics are of one class's map
        x = jax.nn.relu(self.norm1(x))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        return rearrange(x, "(b t) h w c -> b t h w c", b=batch)

    def run_kernel(
        self,
        x: Float[Array, "b t n i"],
        shared: "SharedByClasses",
        evidence: Evidence | None,
        factor: int,
        *,
        interpret: bool = False,
    ) -> Float[Array, "b t n o"]:
        """`__call__` by the kernel for TPUs, on maps in space-to-depth form.

        Args:
            x: in blocks of ``factor x factor`` cells; the result has them twice that size.
            shared: as in `__call__`.
            evidence: added to the result.
            factor: see ``x``.
            interpret: run on any device, slowly.
        """
        out = 2 * factor
        added = space_to_depth(shared.added, out)
        lanes = lambda p: jnp.tile(cast(nnx.Param, p)[...], out)[None]  # noqa: E731
        composed = rearrange(shared.composed, "r s c (a b d) -> (a r) (b s) c d", a=2, b=2)
        weights = Weights(
            tiled_kernel(spread_kernel(composed, upsampling_taps(factor))),
            lanes(self.norm1.scale),
            lanes(self.norm1.bias),
            tiled_kernel(spread_kernel(jnp.asarray(self.conv2.kernel[...]), convolution_taps(out))),
            lanes(self.norm2.scale),
            lanes(self.norm2.bias),
        )
        sizes = Sizes(added.shape[2], factor, self.norm1.group_size)
        added = rearrange(added, "b h w o -> b (h w) o")
        if evidence is None:
            block = lambda x, added, w: decoder_block(x, added, w, None, sizes, interpret)  # noqa: E731
            return by_device(block, (x, added), weights)
        patches = neighborhoods(evidence.maps.astype(x.dtype), out)
        patches = rearrange(patches, "b t h w e -> b t (h w) e")
        kernel = neighborhood_kernel(jnp.asarray(evidence.conv.kernel[...]), out)

        def block_with(x: Array, added: Array, patches: Array, w: Weights, kernel: Array) -> Array:
            return decoder_block(x, added, w, Patches(patches, kernel), sizes, interpret)

        return by_device(block_with, (x, added, patches), weights, kernel)


class SharedByClasses(NamedTuple):
    """What the classes of an image share in a `DecoderBlock`.

    Attributes:
        added: to each class's map, before the first norm: what the first convolution makes of the
            guidance and of the bias of the up-sampling.
        composed: kernel of the up-sampling and the first convolution (`compose`).
    """

    added: Float[Array, "b h2 w2 d"]
    composed: Float[Array, "2 2 c k"]


def decode(
    blocks: list[DecoderBlock],
    head: Conv,
    x: Float[Array, "b t h w c"],
    shared: list[SharedByClasses],
    evidence: list[Evidence | None],
) -> Float[Array, "b t h4 w4"]:
    """The logits of each class.

    Args:
        blocks: of the decoder; each doubles the side.
        head: convolution to one channel.
        x: the aggregated map of each class.
        shared: what the classes share, for each block.
        evidence: what the masks say behind each block; None: nothing.
    """
    if serves(x) and _fits(blocks, *x.shape[2:]):
        return jax.lax.platform_dependent(
            x,
            tpu=lambda x: decode_in_kernels(blocks, head, x, shared, evidence),
            default=lambda x: decode_plainly(blocks, head, x, shared, evidence),
        )
    return decode_plainly(blocks, head, x, shared, evidence)


def decode_plainly(
    blocks: list[DecoderBlock],
    head: Conv,
    x: Float[Array, "b t h w c"],
    shared: list[SharedByClasses],
    evidence: list[Evidence | None],
) -> Float[Array, "b t h4 w4"]:
    """`decode` for any device."""
    for block, its_shared, its_evidence in zip(blocks, shared, evidence, strict=True):
        x = block(x, its_shared)
        if its_evidence is not None:
            x = its_evidence.add(x)
    return head(x)[..., 0]


def decode_in_kernels(
    blocks: list[DecoderBlock],
    head: Conv,
    x: Float[Array, "b t h w c"],
    shared: list[SharedByClasses],
    evidence: list[Evidence | None],
    *,
    interpret: bool = False,
) -> Float[Array, "b t h4 w4"]:
    """`decode` by the kernels for TPUs; a cell of ``x`` becomes one of 4 x 4 cells' channels.

    Maps are in space-to-depth form until the end.
    """
    batch, _, height, width, _ = x.shape
    maps, factor = rearrange(x, "b t h w c -> b t (h w) c"), 1
    for block, its_shared, its_evidence in zip(blocks, shared, evidence, strict=True):
        maps = block.run_kernel(maps, its_shared, its_evidence, factor, interpret=interpret)
        factor *= 2
    maps = rearrange(maps, "b t (h w) k -> (b t) h w k", h=height, w=width)
    kernel = spread_kernel(jnp.asarray(head.kernel[...]), convolution_taps(factor))
    logits = depth_to_space(spread_conv(maps, kernel), factor)
    logits = rearrange(logits, "(b t) h w 1 -> b t h w", b=batch)
    return logits + cast(nnx.Param, head.bias)[0]


def _fits(blocks: list[DecoderBlock], height: int, width: int, channels: int) -> bool:
    """Whether the kernels serve the decoder's blocks."""
    factor = 1
    for block in blocks:
        if not fits(height, width, factor, channels, block.out_dim):
            return False
        factor, channels = 2 * factor, block.out_dim
    return True
