"""TPU kernels, interpreted on the CPU, against the plain forms: results and gradients."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from sammi_jax.config.experiment import MeshConfig
from sammi_jax.config.model import SAM_SIZES, AggregatorConfig
from sammi_jax.kernels.window_attention import ROW
from sammi_jax.layers import Conv, layer_norm
from sammi_jax.layers.class_attention import ClassAggregation
from sammi_jax.layers.init import Keys
from sammi_jax.layers.space_to_depth import depth_to_space
from sammi_jax.layers.swin import SwinBlock
from sammi_jax.models.aggregator import Aggregator
from sammi_jax.models.decoder import DecoderBlock, decode_in_kernels, decode_plainly
from sammi_jax.models.dmi import Evidence
from sammi_jax.models.sam.image_encoder import EncoderBlock, norm_in_kernel
from sammi_jax.models.sam.relative_attention import (
    attend_cells,
    attend_in_kernel,
    relative_positions,
)
from sammi_jax.models.sam.window_attention import (
    cut_normed_windows,
    cut_normed_windows_plainly,
    cut_windows,
    join_windows,
    kernel_attention,
    window_attention,
)
from sammi_jax.ops.sharding import by_device
from sammi_jax.parallel.mesh import make_mesh
from tests.parity import assert_parity

ROOT = Path(__file__).resolve().parent.parent
LIBTPU = Path(sys.prefix) / "tpu"


def normal(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def noisy(module):
    """A module's structure and state; no parameter stays at zero or one."""
    graphdef, state = nnx.split(module)
    leaves, tree = jax.tree.flatten(state)
    noise = normal(7, *(leaf.shape for leaf in leaves))
    return graphdef, tree.unflatten([x + 0.2 * n for x, n in zip(leaves, noise, strict=True)])


def assert_same(kernel, plain, *inputs):
    """Equal results of two functions, and equal gradients for all inputs (trees of arrays).

    A gradient that is zero but for rounding, as of the bias of keys, has to be so in both.
    """

    @partial(jax.jit, static_argnums=0)
    def both(f, *inputs):
        value, pull = jax.vjp(f, *inputs)
        weights = jnp.sin(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        return value, pull(weights)

    with jax.default_matmul_precision("highest"):
        ours, reference = (jax.tree.flatten(both(f, *inputs)) for f in (kernel, plain))
    assert ours[1] == reference[1]
    zero = 1e-6 * optax.tree.norm(reference[0][1:])
    for one, other in zip(ours[0], reference[0], strict=True):
        if optax.tree.norm(other) < zero:
            assert optax.tree.norm(one) < zero
        else:
            assert_parity(one, other)


def test_attention_in_windows():
    """Maps of 5 x 4 cells, whose windows of 3 reach over the edge; 2 heads of 8 channels."""
    window, dim, channels = 3, 8, 16
    x, weights = normal(0, (2, 5, 4, channels), (3, channels, channels))
    bias, rel_h, rel_w = normal(1, (3, channels), (2 * window - 1, dim), (2 * window - 1, dim))

    def plain(x, weights, bias, rel_h, rel_w):
        tables = (relative_positions(table, window) for table in (rel_h, rel_w))
        return window_attention(tuple(x @ w for w in weights), bias, *tables)

    def kernel(x, weights, bias, rel_h, rel_w):
        windows = cut_windows(x, window)
        projected = [windows @ w + b[None, None] for w, b in zip(weights, bias, strict=True)]
        return join_windows(kernel_attention(*projected, rel_h, rel_w, True), window, (5, 4))

    assert_same(kernel, plain, x, weights, bias, rel_h, rel_w)


def test_map_norm():
    graphdef, state = noisy(layer_norm(16, eps=1e-2, rngs=nnx.Rngs(0)))
    (x,) = normal(1, (2, 8, 4, 16))
    kernel = lambda state, x: norm_in_kernel(nnx.merge(graphdef, state), x, interpret=True)  # noqa: E731
    assert_same(kernel, lambda state, x: nnx.merge(graphdef, state)(x), state, x)


def test_windows_of_a_norm():
    """Maps of 5 x 4 cells, whose windows of 3 reach over both edges; cells beside are any."""
    x, scale, bias = normal(1, (2, 5, 4, 16), (16,), (16,))
    inside = (jnp.arange(3 * ROW) % ROW < 3)[None, :, None]

    def run(form, **options):
        return lambda *inputs: jnp.where(inside, form(*inputs, 1e-2, 3, **options), 0.0)

    kernel = run(cut_normed_windows, interpret=True)
    assert_same(kernel, run(cut_normed_windows_plainly), x, scale, bias)


def test_attention_over_a_map():
    """256 cells in blocks of 128 and more; the heads of 8 channels and positions fill 40 of 128."""
    query, key, value = normal(0, *[(1, 2, 16, 16, 8)] * 3)
    rel_h, rel_w = normal(1, (16, 16, 8), (16, 16, 8))
    kernel = partial(attend_in_kernel, interpret=True)
    assert_same(kernel, attend_cells, query, key, value, rel_h, rel_w)


@pytest.mark.parametrize("biased", [True, False])
def test_swin_block(biased):
    """Two windows of 16 tokens, two classes; 2 heads of 8 channels."""
    graphdef, state = noisy(SwinBlock(16, 8, 2, 4, shifted=False, rngs=nnx.Rngs(0)))
    x, shared, bias = normal(1, (1, 2, 2, 16, 16), (1, 1, 2, 16, 8), (2, 16, 16))

    def run(name, **options):
        return lambda state, x, shared: getattr(nnx.merge(graphdef, state), name)(
            x, shared, bias if biased else None, **options
        )

    kernel, plain = run("run_kernel", interpret=True), run("run_plainly")
    if biased:
        assert_same(kernel, plain, state, x, shared)
    else:
        assert_parity(kernel(state, x, shared), plain(state, x, shared))


def test_class_aggregation():
    """Five classes, one of them absent, at two locations of two images, and two padding slots."""
    graphdef, state = noisy(ClassAggregation(16, 8, 2, "linear", rngs=nnx.Rngs(0)))
    x, text = normal(1, (2, 5, 1, 2, 16), (1, 5, 8))
    mask = jnp.array([[True] * 5, [True, True, False, True, True]])
    padding = jnp.array([2, 3])

    def run(name, **options):
        def present(state, x, text):
            layer = nnx.merge(graphdef, state)
            out = getattr(layer, name)(x, text, mask, padding, **options)
            return jnp.where(mask[..., None, None, None], out, 0.0)  # the rest means nothing

        return present

    assert_same(run("run_kernel", interpret=True), run("run_plainly"), state, x, text)


def decoders():
    """The decoder in kernels and plain; inputs of 4 x 3 cells, with evidence behind each block.

    Three classes in two images; the blocks' norms have two groups and one.
    """
    in_dim, dims, guides = 40, (32, 16), (6, 4)

    class Decoder(nnx.Module):
        def __init__(self, rngs):
            sizes = zip((in_dim, dims[0]), guides, dims, strict=True)
            self.blocks = nnx.List([DecoderBlock(*size, rngs=rngs) for size in sizes])
            self.evidence = nnx.List([Conv(2, dim, 3, use_bias=False, rngs=rngs) for dim in dims])
            self.head = Conv(dims[1], 1, 3, rngs=rngs)

    graphdef, state = noisy(Decoder(nnx.Rngs(0)))
    x, *guidance = normal(1, (2, 3, 4, 3, in_dim), (2, 8, 6, guides[0]), (2, 16, 12, guides[1]))
    maps = normal(2, (2, 3, 8, 6, 2), (2, 3, 16, 12, 2))

    def run(form, **options):
        def decoded(state, x, guidance, maps):
            model = nnx.merge(graphdef, state)
            shared = [b.share(g) for b, g in zip(model.blocks, guidance, strict=True)]
            evidence = [Evidence(m, c) for m, c in zip(maps, model.evidence, strict=True)]
            return form(list(model.blocks), model.head, x, shared, evidence, **options)

        return decoded

    kernel, plain = run(decode_in_kernels, interpret=True), run(decode_plainly)
    return kernel, plain, (state, x, guidance, maps)


def test_decoder():
    kernel, plain, inputs = decoders()
    assert_parity(jax.jit(kernel)(*inputs), jax.jit(plain)(*inputs))


@pytest.mark.slow
def test_gradient_of_the_decoder():
    assert_same(*decoders()[:2], *decoders()[2])


@pytest.mark.slow
def test_decoder_block_without_evidence():
    graphdef, state = noisy(DecoderBlock(10, 2, 16, rngs=nnx.Rngs(0)))
    x, guidance = normal(1, (1, 2, 2, 3, 10), (1, 4, 6, 2))

    def kernel(state, x, guidance):
        block = nnx.merge(graphdef, state)
        maps = block.run_kernel(
            x.reshape(1, 2, 6, 10), block.share(guidance), None, 1, interpret=True
        )
        return depth_to_space(maps.reshape(1, 2, 2, 3, 64), 2)

    def plain(state, x, guidance):
        block = nnx.merge(graphdef, state)
        return block(x, block.share(guidance))

    assert_same(kernel, plain, state, x, guidance)


@pytest.mark.parametrize("batch", [8, 3])
def test_each_device_computes_its_share(batch):
    """Also the gradient of what is shared; three images do not divide over eight devices."""
    x, weights = normal(0, (batch, 4), (4, 4))

    def loss(x, weights):
        return jnp.sum(jnp.sin(by_device(lambda x, w: jnp.tanh(x @ w), (x,), weights)))

    expected = jax.grad(loss, argnums=(0, 1))(x, weights)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2))):
        found = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weights)
        text = jax.jit(loss).lower(x, weights).as_text()
    jax.tree.map(assert_parity, found, expected)
    assert "manual_computation" in text


def test_unknown_sizes_take_the_plain_form():
    """`jax.export` leaves the numbers of images and classes open, also for TPUs."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: SwinBlock(128, 8, 2, 4, shifted=False, rngs=nnx.Rngs(0)))
    )
    low = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.bfloat16)  # noqa: E731
    state = jax.tree.map(lambda leaf: low(*leaf.shape), state)
    block = jax.jit(lambda state, x, guidance: nnx.merge(graphdef, state)(x, guidance))
    for batch, classes in [(1, 2), jax.export.symbolic_shape("b, t")]:
        inputs = low(batch, classes, 4, 4, 128), low(batch, 4, 4, 8)
        exported = jax.export.export(block, platforms=("tpu",))(state, *inputs)
        assert ("tpu_custom_call" in exported.mlir_module()) == isinstance(batch, int)


def test_real_sizes_take_the_kernels():
    """CAT-Seg's decoder, and the norms of a windowed and a global block of SAM ViT-H."""
    low = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.bfloat16)  # noqa: E731

    def kernels(kind, arguments, run, *inputs):
        make = lambda: kind(*arguments, rngs=Keys(0))  # noqa: E731
        graphdef, state = nnx.split(nnx.eval_shape(make))
        state = jax.tree.map(lambda leaf: low(*leaf.shape), state)
        program = jax.jit(lambda state, *inputs: run(nnx.merge(graphdef, state), *inputs))
        text = jax.export.export(program, platforms=("tpu",))(state, *inputs).mlir_module()
        return set(re.findall(r'kernel_name = "(\w+)"', text))

    def decode(model, x, *guidance):
        return model.decode(x, model.share(list(guidance)))

    guidance = low(1, 48, 48, 32), low(1, 96, 96, 16)
    x = low(1, 2, 24, 24, 128)
    found = kernels(Aggregator, (AggregatorConfig(), 64), decode, x, *guidance)
    assert found == {"decoder_block"}

    image = low(1, 64, 64, 1280)
    for window, names in [(14, {"norm_windows", "sam_window_attention"}), (0, {"layer_norm"})]:
        run = lambda block, x: block(x)  # noqa: E731
        found = kernels(EncoderBlock, (SAM_SIZES["vith"], window), run, image)
        assert found >= names | {"layer_norm"}


@pytest.mark.slow
def test_kernels_compile_for_chips_that_are_not_here():
    """At real sizes and in bfloat16, over four chips, with the gradients that training needs."""
    script = """
import re
import jax, jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from sammi_jax.config.experiment import MeshConfig
from sammi_jax.config.model import AggregatorConfig, SamConfig
from sammi_jax.layers.init import Keys
from sammi_jax.models.aggregator import Aggregator, AggregatorLayer
from sammi_jax.models.sam.image_encoder import EncoderBlock
from sammi_jax.parallel.mesh import AXES, make_mesh
from sammi_jax.pods.aot import describe_topology

mesh = make_mesh(MeshConfig(fsdp=2), describe_topology("v5e:2x2"))
def shape(spec, *sides):
    place = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(sides, jnp.bfloat16, sharding=place)
def split(make):
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.tree.map(lambda leaf: shape((), *leaf.shape), state)
def compiled(f, *args):
    with jax.set_mesh(mesh):
        text = jax.jit(f).lower(*args).compile().as_text()
    calls = set(re.findall(r"%([a-z_]+)[.0-9]* = [^\\n]*tpu_custom_call", text))
    print(*sorted(calls))

sam = SamConfig(width=640, num_heads=8)
for window in (14, 0):
    graphdef, state = split(lambda: EncoderBlock(sam, window, rngs=Keys(0)))
    compiled(lambda state, x: nnx.merge(graphdef, state)(x), state, shape((AXES,), 4, 64, 64, 640))

graphdef, state = split(lambda: AggregatorLayer(AggregatorConfig(), rngs=Keys(0)))
mask, padding = jnp.ones((4, 20), bool), jnp.full((4,), 236)
def loss(state, x, appearance, text):
    layer = nnx.merge(graphdef, state)
    x = layer.classes(layer.spatial(x, appearance), text, mask, padding, 2)
    return jnp.sum(x.astype(jnp.float32))
compiled(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)), state, shape((AXES,), 4, 20, 24, 24, 128),
         shape((AXES,), 4, 24, 24, 128), shape((), 1, 20, 128))

graphdef, state = split(lambda: Aggregator(AggregatorConfig(), 64, rngs=Keys(0)))
def loss(state, x, *guidance):
    model = nnx.merge(graphdef, state)
    return jnp.sum(jnp.square(model.decode(x, model.share(list(guidance))).astype(jnp.float32)))
compiled(jax.value_and_grad(loss, argnums=(0, 1, 2)), state, shape((AXES,), 4, 20, 24, 24, 128),
         shape((AXES,), 4, 48, 48, 32), shape((AXES,), 4, 96, 96, 16))
"""
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBTPU}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "layer_norm norm_windows sam_window_attention",
        "layer_norm splash_mha_fwd_no_residuals",
        "class_attention class_attention_backward swin_block swin_block_backward",
        "decoder_block decoder_block_backward",
    ]
