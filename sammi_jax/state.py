"""The training state and the one pure step that moves it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from sammi_jax.data.loader import Batch

Params = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
Gradient = Callable[[Params, Batch, jax.Array], tuple[tuple[jax.Array, Metrics], Params]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that changes in training, and the frozen parameters beside it.

    Attributes:
        step: steps done, int32.
        trainable: parameters with gradients, by path.
        frozen: the other parameters and the buffers, by path; they have no optimizer state.
        opt_state: optax's, over ``trainable``.
    """

    step: Any
    trainable: Any
    frozen: Any
    opt_state: Any

    @property
    def params(self) -> Params:
        """All parameters by path."""
        return {**self.frozen, **self.trainable}


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def describe(state: TrainState) -> str:
    """One line: how many parameters train and are frozen, and what the optimizer remembers."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    remembered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    return (
        f"{count(state.trainable):.2f} M parameters train, {count(state.frozen):.2f} M are frozen; "
        f"optimizer state {remembered / 1e6:.1f} MB"
    )


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulate: int = 1,
) -> Step:
    """The step ``(state, batch) -> (state, metrics)``; its randomness depends on (seed, step) only.

    Metrics are scalars: those of ``loss`` and ``loss``, ``grad_norm`` (of the trainable
    parameters, before clipping), ``learning_rate`` and ``finite`` (loss, gradient and update).

    Args:
        loss: of all parameters, a batch and a key.
        optimizer: over the trainable parameters.
        schedule: the learning rate, for the metrics.
        seed: of the step's key.
        accumulate: equal parts of the batch that are worked off one after the other.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(trainable: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return loss({**state.frozen, **trainable}, batch, key)

        gradient = _accumulated(jax.value_and_grad(loss_of, has_aux=True), accumulate)
        (value, metrics), grads = gradient(state.trainable, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        grad_norm = optax.tree.norm(grads)
        metrics = metrics | {
            "loss": value,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(state.step)),
            "finite": jnp.isfinite(jnp.stack([value, grad_norm, optax.tree.norm(updates)])).all(),
        }
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

    return train_step


def _accumulated(gradient: Gradient, parts: int) -> Gradient:
    """The mean of ``gradient`` (and of loss and metrics) over ``parts`` of the batch.

    Example i goes to part i % parts: each device keeps the examples that it has.
    """
    if parts == 1:
        return gradient

    def mean(trainable: Params, batch: Batch, key: jax.Array) -> Any:
        examples = jax.tree.map(
            lambda x: rearrange(x, "(b a) ... -> a b ...", a=parts), batch.examples
        )

        def one(part: tuple[jax.Array, dict[str, jax.Array]]) -> Any:
            index, examples = part
            whole = Batch(examples, batch.shared)
            return gradient(trainable, whole, jax.random.fold_in(key, index))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(part)), None

        steps = (jnp.arange(parts), examples)
        first = jax.tree.map(lambda x: x[0], steps)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first))
        total, _ = jax.lax.scan(add, zeros, steps)
        return jax.tree.map(lambda x: x / parts, total)

    return mean
