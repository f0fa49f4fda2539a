"""The training state and the pure function that makes a step."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.parallel.batch import Batch
from sammi_jax.parallel.mesh import fsdp_sharding
from sammi_jax.training.optim import make_schedule
from sammi_jax.training.task import Rules
from sammi_jax.weights.params import build, cast_params

Params = dict[str, Any]  # arrays by path: of jax, of numpy, or their shapes
Metrics = dict[str, jax.Array]
Loss = Callable[[Params, Batch, jax.Array], tuple[jax.Array, Metrics]]
Gradient = Callable[[Params, Batch, jax.Array], tuple[tuple[jax.Array, Metrics], Params]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and the frozen parameters.

    Attributes:
        step: steps done, int32.
        trainable: parameters with gradients, by path.
        frozen: the other parameters and the buffers, by path; they have no optimizer state. Where a
            step computes in bfloat16, these are (`held_params`).
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
    """One line: the numbers of trainable and frozen parameters, and the optimizer state's size."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    remembered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    return (
        f"{count(state.trainable):.2f} M parameters train, {count(state.frozen):.2f} M are frozen; "
        f"optimizer state {remembered / 1e6:.1f} MB"
    )


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Step:
    """The step ``(state, batch) -> (state, metrics)``; its randomness depends on (seed, step) only.

    Metrics are scalars: those of ``loss`` and ``loss``, ``grad_norm`` (of the trainable
    parameters, before clipping), ``learning_rate`` and ``finite`` (loss, gradient and update).

    Args:
        loss: of all parameters, a batch and a key.
        optimizer: over the trainable parameters.
        config: seed, schedule, and the number of parts over which gradients are accumulated.
    """
    schedule = make_schedule(config.optim, config.steps)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(trainable: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            return loss({**state.frozen, **trainable}, batch, key)

        gradient = _accumulated(jax.value_and_grad(loss_of, has_aux=True), config.accumulate)
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

    Example i belongs to part i % parts, so that no example moves to another device.
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


def make_loss(rules: Rules, dtype: str) -> Loss:
    """``f(params, batch, key)``: the loss of the model that is built from ``params``.

    Args:
        rules: the model and its loss.
        dtype: what the model's products compute in.
    """

    def loss(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return rules.loss(build(lambda: rules.make(Keys(0)), params, dtype), batch, key)

    return loss


def trainable_paths(rules: Rules) -> list[str]:
    """Paths of the parameters that train, in the model's order.

    Raises:
        SammiError: there are none.
    """
    abstract = nnx.eval_shape(lambda: rules.make(Keys(0)))
    paths = [
        "/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    ]
    chosen = [path for path in paths if rules.is_trainable(path)]
    if not chosen:
        raise SammiError("nothing trains: the task leaves no parameter trainable")
    return chosen


def held_params(rules: Rules, params: Mapping[str, Any], dtype: str) -> Params:
    """All parameters as the devices hold them: the frozen ones in the type of the products.

    So no step casts them. What is exported are the ones that were read, not these.

    Args:
        rules: say what trains.
        params: all parameters by path.
        dtype: what the products compute in.
    """
    frozen = {path: value for path, value in params.items() if not rules.is_trainable(path)}
    return {**params, **cast_params(lambda: rules.make(Keys(0)), frozen, dtype)}


def abstract_state(
    params: Mapping[str, Any],
    trainable: Collection[str],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """The shapes of the state, with their shardings; nothing is allocated.

    Args:
        params: all parameters by path; shapes are enough.
        trainable: paths of those that train.
        optimizer: over these.
        mesh: the devices, which may be described only.
    """

    def initial(params: Mapping[str, jax.Array]) -> TrainState:
        chosen, frozen = _split(params, trainable)
        return TrainState(jnp.zeros((), jnp.int32), chosen, frozen, optimizer.init(chosen))

    shapes = jax.eval_shape(initial, dict(params))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        fsdp_sharding(shapes, mesh),
    )


def new_state(
    params: Mapping[str, Any],
    trainable: Collection[str],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """The state at step 0, on the devices of the mesh; arguments as of `abstract_state`."""
    abstract = abstract_state(params, trainable, optimizer, mesh)
    placed = jax.tree.map(lambda x: x.sharding, abstract)
    chosen, frozen = _split(params, trainable)
    chosen, frozen = jax.device_put((chosen, frozen), (placed.trainable, placed.frozen))
    opt_state = jax.jit(optimizer.init, out_shardings=placed.opt_state)(chosen)
    step = jax.device_put(jnp.zeros((), jnp.int32), placed.step)
    return TrainState(step, chosen, frozen, opt_state)


def _split(params: Mapping[str, Any], trainable: Collection[str]) -> tuple[Params, Params]:
    """The parameters that train, and the others."""
    chosen = {path: params[path] for path in trainable}
    return chosen, {path: value for path, value in params.items() if path not in chosen}
