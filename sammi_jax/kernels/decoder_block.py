"""A block of the decoder on a whole map in on-chip memory: two convolutions with norms and ReLU.

Kernels for TPUs, forward and backward; the backward one makes the inner values again. Maps are in
space-to-depth form (`sammi_jax.layers.space_to_depth`), so that the cells of a row of a block and
their channels fill the lanes: a map is one tile ``[cells, lanes]`` for each of these rows.
A convolution is a sum of products of such tiles, moved by a block up, down, left or right, with
parts of its kernel (`tiled_kernel`).
"""

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from sammi_jax.kernels.parts import (
    EPS,
    LANES,
    ROWS,
    SUBLANES,
    VMEM,
    dot,
    dot_t,
    f32,
    row_sum,
    t_dot,
)
from sammi_jax.typing import Array, Float


class Weights(NamedTuple):
    """The parameters; ``k`` and ``l`` are the lanes of a tile of the input and of the output.

    Norms have a row of lanes: that of the channels, repeated for the cells beside each other.
    """

    conv1: Float[Array, "g n k l"]
    norm1_scale: Float[Array, "1 l"]
    norm1_bias: Float[Array, "1 l"]
    conv2: Float[Array, "g m l l"]
    norm2_scale: Float[Array, "1 l"]
    norm2_bias: Float[Array, "1 l"]


class Sizes(NamedTuple):
    """What the kernels have to know of the maps.

    Attributes:
        width: cells of a row of the coarse map; its cells follow each other row by row.
        factor: blocks of the input have ``factor x factor`` cells, those of the output twice that.
        group: channels in a group of the norms.
    """

    width: int
    factor: int
    group: int


def fits(height: int, width: int, factor: int, channels: int, out: int) -> bool:
    """Whether the kernels serve blocks of ``factor x factor`` cells of so many channels."""
    filled = factor * channels == LANES and 2 * factor * out == LANES
    return filled and width % SUBLANES == 0 and height * width % ROWS == 0


def tiled_kernel(kernel: Float[Array, "3 3 f f c g g d"]) -> Float[Array, "g n k l"]:
    """The parts of a kernel of `spread_kernel` that are not zero, for each tile of the output."""
    factor, out = kernel.shape[2], kernel.shape[5]
    upsampling = out > factor
    parts = []
    for row in range(out):
        forms = []
        for u in _rows(row, upsampling):
            block, f = divmod(u, factor)
            forms += _column_forms(kernel[block + 1, :, f, :, :, row])
        parts.append(jnp.stack(forms))
    return jnp.stack(parts)


def _rows(row: int, upsampling: bool) -> tuple[int, ...]:
    """The rows of the input that a row of an output block sees; -1: the last of those above."""
    if upsampling:
        first = row // 2 - 1 + row % 2
        return first, first + 1
    return row - 1, row, row + 1


def _column_forms(kernel: Float[Array, "3 f c g d"]) -> list[Array]:
    """Parts for the tiles that `_Maps` makes of one, in their order."""
    factor = kernel.shape[1]
    merged = [rearrange(part, "f c g d -> (f c) (g d)") for part in kernel]
    if factor == 1:
        return merged
    beside = jnp.zeros_like(kernel[0]).at[0].set(kernel[2, 0]).at[-1].set(kernel[0, -1])
    return [merged[1], rearrange(beside, "f c g d -> (f c) (g d)")]


class Patches(NamedTuple):
    """What is added behind a block: ``patches @ kernel``.

    Attributes:
        patches: what each cell sees of the masks' evidence.
        kernel: to the channels of the output.
    """

    patches: Float[Array, "b t n e"]
    kernel: Float[Array, "e o"]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def decoder_block(
    x: Float[Array, "b t n i"],
    added: Float[Array, "b n o"],
    weights: Weights,
    evidence: Patches | None,
    sizes: Sizes,
    interpret: bool = False,
) -> Float[Array, "b t n o"]:
    """Up-sampling with the first convolution (`compose`), norm, ReLU, convolution, norm, ReLU.

    Args:
        x: the map of each class, in space-to-depth form.
        added: to the map of each class before the first norm, in the output's form.
        weights: of the block.
        evidence: added at the end.
        sizes: of the maps.
        interpret: run on any device, slowly.
    """
    constants = _constants(x, weights, sizes)
    operands, specs = _evidence_operands(evidence)
    return pl.pallas_call(
        partial(_forward_kernel, sizes=sizes),
        grid=x.shape[:2],
        in_specs=[_per_class(x), _per_image(added), *map(_whole, (*constants, *weights)), *specs],
        out_specs=_per_class(added[:, None]),
        out_shape=jax.ShapeDtypeStruct((*x.shape[:3], added.shape[2]), x.dtype),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="decoder_block",
        interpret=interpret,
    )(x, added, *constants, *weights, *operands)


def _forward(x, added, weights, evidence, sizes, interpret):
    inputs = (x, added, weights, evidence)
    return decoder_block(*inputs, sizes, interpret), inputs


def _backward(sizes, interpret, inputs, gradient):
    x, added, weights, evidence = inputs
    constants = _constants(x, weights, sizes)
    operands, specs = _evidence_operands(evidence)
    summed = (added, *weights, *operands[1:])  # over classes or over all, in float32
    dx, dadded, *dw = pl.pallas_call(
        partial(_backward_kernel, sizes=sizes),
        grid=x.shape[:2],
        in_specs=[
            _per_class(x),
            _per_class(gradient),
            _per_image(added),
            *map(_whole, (*constants, *weights)),
            *specs,
        ],
        out_specs=[_per_class(x), _per_image(added), *map(_whole, weights), *specs[::-1]],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            *(jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in summed),
            *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands[:1]),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM),
        name="decoder_block_backward",
        interpret=interpret,
    )(x, gradient, added, *constants, *weights, *operands)
    like = lambda a, b: a.astype(b.dtype)  # noqa: E731
    count = len(weights)
    found = Weights(*map(like, dw[:count], weights))
    if evidence is None:
        return dx, like(dadded, added), found, None
    dkernel, dpatches = dw[count:]
    return dx, like(dadded, added), found, Patches(dpatches, like(dkernel, evidence.kernel))


decoder_block.defvjp(_forward, _backward)


def _per_class(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, t: (b, t, 0, 0))


def _per_image(x: Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda b, t: (b, 0, 0))


def _whole(array: Any) -> pl.BlockSpec:
    return pl.BlockSpec(array.shape, lambda b, t: (0,) * array.ndim)


def _evidence_operands(evidence: Patches | None) -> tuple[list[Array], list[pl.BlockSpec]]:
    if evidence is None:
        return [], []
    return list(evidence), [_per_class(evidence.patches), _whole(evidence.kernel)]


def _constants(x: Array, weights: Weights, sizes: Sizes) -> list[Array]:
    """Means over groups as a product, and which cells have one to the left and to the right."""
    cells, lanes = x.shape[2], weights.conv2.shape[-1]
    count = 2 * sizes.factor
    group = np.arange(lanes) % (lanes // count) // sizes.group
    means = (group[:, None] == group) / (cells * count * count * sizes.group)
    column = np.arange(cells) % sizes.width
    width = max(lanes, weights.conv1.shape[2])
    left, right = column > 0, column < sizes.width - 1
    beside = [np.repeat(inside[:, None], width, axis=1) for inside in (left, right)]
    return [jnp.asarray(a, jnp.float32) for a in (means, *beside)]


def _forward_kernel(x, added, means, left, right, *rest, sizes):
    *rest, out = rest
    weights, evidence = _split(rest)
    block = _Block(x, added, means, left, right, weights, sizes)
    lanes = means.shape[0]
    for row, tile in enumerate(block.y):
        part = slice(row * lanes, (row + 1) * lanes)
        if evidence:
            patches, kernel = evidence
            tile += dot(patches[0, 0], kernel[:, part])
        out[0, 0, :, part] = tile.astype(out.dtype)


def _split(refs):
    """The weights, and the rest as a list."""
    count = len(Weights._fields)
    return Weights(*refs[:count]), list(refs[count:])


class _Maps:
    """The tiles of a map, moved by a block in each direction; operands of products."""

    def __init__(self, tiles, left, right, width, dtype):
        self.factor, self.width = len(tiles), width
        self.cells, self.lanes = tiles[0].shape
        self.has_left, self.has_right = (edge[:, : self.lanes] for edge in (left, right))
        lane = jax.lax.broadcasted_iota(jnp.int32, tiles[0].shape, 1)
        self.first_half = lane < self.lanes // 2
        forms = [self._forms(tile) for tile in tiles]
        self.operands = {u: [f.astype(dtype) for f in forms[u]] for u in range(self.factor)}
        self.operands[-1] = [self._above(f).astype(dtype) for f in forms[-1]]
        self.operands[self.factor] = [self._below(f).astype(dtype) for f in forms[0]]

    def _left(self, x):
        """For each cell the one to its left; zero where there is none."""
        return pltpu.roll(x, 1, 0) * self.has_left

    def _right(self, x):
        return pltpu.roll(x, self.cells - 1, 0) * self.has_right

    def _above(self, x):
        return jnp.concatenate([jnp.zeros_like(x[: self.width]), x[: -self.width]], axis=0)

    def _below(self, x):
        return jnp.concatenate([x[self.width :], jnp.zeros_like(x[: self.width])], axis=0)

    def _forms(self, x):
        """The tile with what is beside it.

        Of several cells in the lanes, only the first sees the block to the left, whose last cell
        is in the second half of the lanes, and only the last one sees the first cell to the right:
        both are in one tile.
        """
        if self.factor == 1:
            return [self._left(x), x, self._right(x)]
        return [x, jnp.where(self.first_half, self._right(x), self._left(x))]

    def convolve(self, weights, upsampling):
        """The tiles of the convolution's output."""
        return [
            sum(
                dot(operand, weights[row, index])
                for index, operand in enumerate(self._seen(row, upsampling))
            )
            for row in range(weights.shape[0])
        ]

    def _seen(self, row, upsampling):
        return [form for u in _rows(row, upsampling) for form in self.operands[u]]

    def backward(self, gradients, weights, of_weights, upsampling):
        """Gradients of the tiles; those of the weights are added to ``of_weights``."""
        forms: dict[int, list[Any]] = {u: [0.0] * len(self.operands[u]) for u in self.operands}
        for row, gradient in enumerate(gradients):
            index = 0
            for u in _rows(row, upsampling):
                for form, operand in enumerate(self.operands[u]):
                    of_weights[row, index] += t_dot(operand, gradient)
                    forms[u][form] += dot_t(gradient, weights[row, index])
                    index += 1
        above, below = forms.pop(-1), forms.pop(self.factor)
        forms[self.factor - 1] = [
            a + self._below(b) for a, b in zip(forms[self.factor - 1], above, strict=True)
        ]
        forms[0] = [a + self._above(b) for a, b in zip(forms[0], below, strict=True)]
        return [self._forms_backward(forms[u]) for u in range(self.factor)]

    def _forms_backward(self, gradients):
        """What is the left one of a cell's right one is that cell: each move undoes the other."""
        if self.factor == 1:
            left, own, right = gradients
            return self._right(left) + own + self._left(right)
        own, beside = gradients
        return own + jnp.where(self.first_half, self._left(beside), self._right(beside))


class _Norm:
    """A group norm of all tiles of a map."""

    def __init__(self, tiles, scale, bias, means):
        self.means = means
        mean = self._mean(tiles)
        centered = [tile - mean for tile in tiles]
        self.inverse = jax.lax.rsqrt(self._mean([x * x for x in centered]) + EPS)
        self.hat = [x * self.inverse for x in centered]
        self.scale = f32(scale)
        self.out = [jnp.maximum(x * self.scale + f32(bias), 0.0) for x in self.hat]

    def _mean(self, tiles):
        """Of the group of each lane, ``[1, l]``."""
        sums = reduce(jnp.add, map(row_sum, tiles))
        sums = jnp.broadcast_to(sums, (SUBLANES, sums.shape[1]))
        return jnp.dot(sums, self.means, precision=jax.lax.Precision.HIGHEST)[:1]

    def backward(self, gradients, of_scale, of_bias):
        """Gradients of the tiles; those of scale and bias are added to the last two."""
        gradients = [jnp.where(y > 0, g, 0.0) for y, g in zip(self.out, gradients, strict=True)]
        along = [g * x for g, x in zip(gradients, self.hat, strict=True)]
        of_scale[...] += sum(row_sum(a) for a in along)
        of_bias[...] += sum(row_sum(g) for g in gradients)
        mean = self._mean([g * self.scale for g in gradients])
        mean_along = self._mean([a * self.scale for a in along])
        return [
            (g * self.scale - mean - x * mean_along) * self.inverse
            for g, x in zip(gradients, self.hat, strict=True)
        ]


class _Block:
    """The inner values of a block; in float32 but for the operands of products."""

    def __init__(self, x, added, means, left, right, w: Weights, sizes: Sizes):
        lanes = w.conv1.shape[2]
        tiles = [f32(x[0, 0, :, u * lanes : (u + 1) * lanes]) for u in range(sizes.factor)]
        maps = partial(_Maps, left=left[...], right=right[...], width=sizes.width, dtype=x.dtype)
        self.input = maps(tiles)
        lanes = means.shape[0]
        first = [
            tile + f32(added[0, :, row * lanes : (row + 1) * lanes])
            for row, tile in enumerate(self.input.convolve(w.conv1, upsampling=True))
        ]
        self.norm1 = _Norm(first, w.norm1_scale[...], w.norm1_bias[...], means[...])
        self.hidden = maps(self.norm1.out)
        second = self.hidden.convolve(w.conv2, upsampling=False)
        self.norm2 = _Norm(second, w.norm2_scale[...], w.norm2_bias[...], means[...])
        self.y = self.norm2.out


def _backward_kernel(x, dy, added, means, left, right, *rest, sizes):
    count = len(rest) // 2 - 1  # weights and evidence; the same as gradients, and two more
    w, evidence = _split(rest[:count])
    dx, dadded, *rest = rest[count:]
    dw, devidence = _split(rest)
    first_class = pl.program_id(1) == 0

    @pl.when(first_class)
    def _():
        dadded[...] = jnp.zeros_like(dadded)

    @pl.when(first_class & (pl.program_id(0) == 0))
    def _():
        for ref in (*dw, *devidence[:1]):
            ref[...] = jnp.zeros_like(ref)

    lanes = means.shape[0]
    tiles = [slice(row * lanes, (row + 1) * lanes) for row in range(2 * sizes.factor)]
    if evidence:
        patches, kernel = evidence
        dkernel, dpatches = devidence
        of_patches = 0.0
        for part in tiles:
            dkernel[:, part] += t_dot(patches[0, 0], dy[0, 0, :, part])
            of_patches += dot_t(dy[0, 0, :, part], kernel[:, part])
        dpatches[0, 0] = jnp.asarray(of_patches).astype(dpatches.dtype)
    block = _Block(x, added, means, left, right, w, sizes)
    low = lambda tiles: [tile.astype(x.dtype) for tile in tiles]  # noqa: E731
    gradients = [f32(dy[0, 0, :, part]) for part in tiles]
    gradients = block.norm2.backward(gradients, dw.norm2_scale, dw.norm2_bias)
    gradients = block.hidden.backward(low(gradients), w.conv2, dw.conv2, upsampling=False)
    gradients = block.norm1.backward(gradients, dw.norm1_scale, dw.norm1_bias)
    for part, gradient in zip(tiles, gradients, strict=True):
        dadded[0, :, part] += gradient
    gradients = block.input.backward(low(gradients), w.conv1, dw.conv1, upsampling=True)
    lanes = w.conv1.shape[2]
    for row, tile in enumerate(gradients):
        dx[0, 0, :, row * lanes : (row + 1) * lanes] = tile.astype(dx.dtype)
