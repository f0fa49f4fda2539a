"""Equal blocks held as one block with stacked parameters and run by `jax.lax.scan`.

One traced block instead of n: shorter programs, fewer leaves, and rematerialization that saves
memory (inside a Python loop `jax.checkpoint` saves nothing on CPU). The price on a CPU is that
every run copies each block's parameters out of the stack; `Unrolled` is without it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.model import Remat
from sammi_jax.layers.init import Keys, is_traced
from sammi_jax.layers.remat import rematerialized
from sammi_jax.typing import Array


class Stack(nnx.Module):
    """``num_layers`` equal blocks; every parameter has a leading layer axis."""

    def __init__(
        self, make_block: Callable[[nnx.Rngs], nnx.Module], num_layers: int, *, rngs: nnx.Rngs
    ):
        self.num_layers = num_layers
        keys = jax.random.split(rngs.params(), num_layers)
        if is_traced(keys):
            state = jax.vmap(lambda key: nnx.state(make_block(Keys(key))))(keys)
        else:
            states = [nnx.state(make_block(Keys(key))) for key in keys]
            state = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_block(Keys(0))))
        self.block = nnx.merge(graphdef, state)

    def unrolled(self) -> "Unrolled":
        """The same blocks, each with parameters of its own."""
        return Unrolled([self.layer(index) for index in range(self.num_layers)])

    def layer(self, index: int) -> Any:
        """The block of one layer as a module; a negative index counts from the end."""
        graphdef, state = nnx.split(self.block)
        return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[index], state))

    def __call__(
        self,
        x: Array,
        *args: Any,
        num_layers: int | None = None,
        taps: tuple[int, ...] = (),
        remat: Remat = "none",
    ) -> tuple[Array, tuple[Array, ...]]:
        """Run the first ``num_layers`` blocks (default all) as ``x = block(x, *args)``.

        Args:
            x: the first block's input.
            *args: passed to every block.
            num_layers: how many blocks run.
            taps: ascending 0-based indices of blocks whose outputs are also returned.
            remat: which activations of each block the backward pass recomputes.

        Returns:
            The last output, and the outputs of the blocks in ``taps``.
        """
        graphdef, state = nnx.split(self.block)

        def body(carry: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graphdef, layer)(carry, *args), None

        body = rematerialized(body, remat, prevent_cse=False)
        stop = self.num_layers if num_layers is None else num_layers
        ends = sorted({*(tap + 1 for tap in taps), stop})
        outputs, start = {}, 0
        for end in ends:
            segment = jax.tree.map(lambda leaf, s=start, e=end: leaf[s:e], state)
            x, _ = jax.lax.scan(body, x, segment)
            outputs[end], start = x, end
        return x, tuple(outputs[tap + 1] for tap in taps)


class Unrolled(nnx.Module):
    """The blocks of a `Stack`, each with its own parameters, for inference on a CPU."""

    def __init__(self, blocks: list[Any]):
        self.blocks = nnx.List(blocks)

    def layer(self, index: int) -> Any:
        """The block of one layer; a negative index counts from the end."""
        return self.blocks[index]

    def __call__(
        self,
        x: Array,
        *args: Any,
        num_layers: int | None = None,
        taps: tuple[int, ...] = (),
        remat: Remat = "none",
    ) -> tuple[Array, tuple[Array, ...]]:
        """As `Stack.__call__`."""
        stop = len(self.blocks) if num_layers is None else num_layers
        outputs = {}
        for index, block in enumerate(self.blocks[:stop]):
            x = rematerialized(block, remat)(x, *args)
            outputs[index] = x
        return x, tuple(outputs[tap] for tap in taps)
