"""The training state and the one pure step that moves it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Any, jax.Array], tuple[jax.Array, Metrics]]


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


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, schedule: optax.Schedule, seed: int
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The step ``(state, batch) -> (state, metrics)``; its randomness depends on (seed, step) only.

    Metrics are scalars: those of ``loss`` and ``loss``, ``grad_norm`` (of the trainable
    parameters, before clipping), ``learning_rate`` and ``finite`` (loss, gradient and update).
    """

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def loss_of(trainable: Params) -> tuple[jax.Array, Metrics]:
            return loss({**state.frozen, **trainable}, batch, key)

        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
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
