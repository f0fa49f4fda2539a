"""FLOPs of a traced function (matrix products and convolutions) and peaks of devices."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import jax

# Published peaks of one device in bfloat16 (dense), by the beginning of its ``device_kind``.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops() -> float | None:
    """FLOP/s in bfloat16 of one of this process's devices; None where they are not known."""
    kind = jax.local_devices()[0].device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of ``function(*args)``, two for each multiply-add; arguments may be shapes.

    Products inside `jax.lax.scan` count once for each iteration; inside a `jax.lax.while_loop`,
    whose number of iterations is not in the trace, once. All other operations are left out.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def count_flops_by_part(
    function: Callable[..., Any], *args: Any, scopes: Iterable[str]
) -> dict[str, float]:
    """`count_flops` by the parts of `Scopes`, recomputed activations included."""
    names, total = Scopes(scopes), defaultdict[str, float](float)

    def add(jaxpr: Any, around: str, times: float) -> None:
        for equation in jaxpr.eqns:
            name = f"{around}/{equation.source_info.name_stack}"
            if flops := _product(equation):
                total[names.part(name) or OTHER] += times * flops
            for inner in _inner(equation):
                add(inner, name, times * _times(equation))

    add(jax.make_jaxpr(function)(*args).jaxpr, "", 1.0)
    return dict(total)


OTHER = "other"  # what is outside of every named scope


class Scopes:
    """Finds parts of a program in the names of its operations.

    Args:
        names: given by `jax.named_scope`.
    """

    def __init__(self, names: Iterable[str]):
        self._pattern = re.compile(
            rf"(?<![\w.])(?:{'|'.join(map(re.escape, names)) or '(?!)'})(?![\w.])"
        )

    def part(self, name: str) -> str | None:
        """The innermost scope, for the backward pass ``NAME backward``; None where there is none.

        Args:
            name: such as ``jit(step)/transpose(jvp(tower))/while/body/dot_general``.
        """
        found = self._pattern.findall(name)
        if not found:
            return None
        return found[-1] + (" backward" if "transpose(" in name else "")


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        total += _product(equation) + _times(equation) * sum(map(_count, _inner(equation)))
    return total


def _times(equation: Any) -> int:
    """How often an equation runs what is inside it."""
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        return prod(equation.params["grid_mapping"].grid)
    return 1


def _product(equation: Any) -> float:
    out = prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * out * prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        return 2.0 * out * prod(kernel) / kernel[out_axis]
    return 0.0


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs; of the branches of a ``cond``, the one with fewest FLOPs.

    A ``cond`` by platform chooses between implementations of one result, and FLOPs above the
    cheapest implementation's are not necessary for it.
    """
    if equation.primitive.name == "cond":
        yield min((branch.jaxpr for branch in equation.params["branches"]), key=_count)
        return
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner
