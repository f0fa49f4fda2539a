"""A module's variables as one flat dictionary ``{"a/b/c": array}``, and back.

Model folders, conversion and sharding name parameters by these paths.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import jax
from flax import nnx

from sammi_jax.errors import SammiError

M = TypeVar("M", bound=nnx.Module)


def _flat(state: Any) -> dict[str, Any]:
    return {
        "/".join(map(str, path)): variable.get_value()
        for path, variable in nnx.to_flat_state(state)
    }


def flat_params(module: nnx.Module) -> dict[str, Any]:
    """All variables of a module by path (trainable parameters and buffers)."""
    return _flat(nnx.state(module))


# What `_abstract` has found, for as long as the constructor is in use: a command asks for its model
# several times, and tracing it takes longer than most of what is then done with it.
_TRACED: WeakKeyDictionary[Callable[[], nnx.Module], tuple[Any, Any]] = WeakKeyDictionary()


def _abstract(make: Callable[[], nnx.Module]) -> tuple[Any, Any]:
    """Structure of ``make()``, and its variables with shapes for values."""
    if make not in _TRACED:
        _TRACED[make] = nnx.split(nnx.eval_shape(make))
    return _TRACED[make]


def abstract_params(make: Callable[[], nnx.Module]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the variables of ``make()``, without running its initialization."""
    _, state = _abstract(make)
    return _flat(state)


def variable_paths(make: Callable[[], nnx.Module], kind: type[nnx.Variable]) -> set[str]:
    """Paths of the variables of one kind in ``make()``."""
    _, state = _abstract(make)
    flat = nnx.to_flat_state(state)
    return {"/".join(map(str, path)) for path, variable in flat if isinstance(variable, kind)}


def build(make: Callable[[], M], params: Mapping[str, Any], dtype: str = "float32") -> M:
    """The module ``make()`` with ``params`` for its variables, without running its initialization.

    Args:
        make: constructor.
        params: all variables by path.
        dtype: of the parameters, and so of the module's matrix products. Buffers and scalars
            (temperatures) stay float32: they cost little, and their precision matters.

    Raises:
        SammiError: a path is missing, is unknown, or has another shape.
    """
    graphdef, state = _abstract(make)
    flat = dict(nnx.to_flat_state(state))
    names = {"/".join(map(str, path)): path for path in flat}
    wrong = [f"missing {name}" for name in names if name not in params]
    wrong += [f"unknown {name}" for name in params if name not in names]
    wrong += [
        f"{name} has shape {tuple(params[name].shape)}, not {flat[path].shape}"
        for name, path in names.items()
        if name in params and tuple(params[name].shape) != flat[path].shape
    ]
    if wrong:
        raise SammiError(f"parameters do not fit the model: {'; '.join(sorted(wrong)[:8])}")

    cast = cast_params(make, params, dtype)
    filled = {path: flat[path].replace(cast[name]) for name, path in names.items()}
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def cast_params(
    make: Callable[[], nnx.Module], params: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """Variables of ``make()`` in the types that `build` gives them.

    Args:
        make: constructor.
        params: some or all variables by path.
        dtype: see `build`.
    """
    if dtype == "float32":
        return dict(params)
    of_products = variable_paths(make, nnx.Param)
    return {
        path: value.astype(dtype) if path in of_products and value.ndim else value
        for path, value in params.items()
    }
