"""The training state and the one pure step that moves it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh

from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.parallel.batch import Batch
from sammi_jax.parallel.mesh import fsdp_sharding, replicated
from sammi_jax.training.task import Rules, Task
from sammi_jax.weights.params import build

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
    def params(self) -> dict[str, Any]:
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


def trainable_paths(task: Rules) -> list[str]:
    """Paths of the parameters that train, in the model's order."""
    abstract = nnx.eval_shape(lambda: task.make(Keys(0)))
    paths = [
        "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    ]
    chosen = [path for path in paths if task.is_trainable(path)]
    if not chosen:
        raise SammiError("nothing trains: the task leaves no parameter trainable")
    return chosen


def new_state(
    task: Task,
    trainable: list[str],
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
) -> TrainState:
    """The state at step 0, placed on the mesh."""
    params = task.initial_params(seed)
    params = jax.device_put(params, fsdp_sharding(params, mesh))
    chosen = {path: params[path] for path in trainable}
    frozen = {path: value for path, value in params.items() if path not in chosen}
    shardings = fsdp_sharding(jax.eval_shape(optimizer.init, chosen), mesh)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(chosen)
    step = jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh))
    return TrainState(step, chosen, frozen, opt_state)


def make_loss(rules: Rules, dtype: str) -> Any:
    """``f(params, batch, key)``: the loss of the model that is built from ``params``."""

    def loss(params: dict[str, Any], batch: Batch, key: jax.Array) -> Any:
        return rules.loss(build(lambda: rules.make(Keys(0)), params, dtype), batch, key)

    return loss
