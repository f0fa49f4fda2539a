"""Conversion tables: which source tensor fills which of our parameters, and how.

A table lists the tensors of one block; `layer_rules` repeats them for every layer. The resulting
list is complete, so it can be printed, counted and inverted. `apply_rules` is strict in both
directions: every source key is used or named in ``ignored`` with a reason, and every slot of every
target is filled exactly once. All errors are raised together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sammi_jax.errors import SammiError, listed

_MAX_LISTED = 12


@dataclass(frozen=True)
class Transform:
    """A named change of shape and axis order, and its inverse."""

    name: str
    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


def _unpatch(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


IDENTITY = Transform("identity", lambda a: a, lambda a: a)
LINEAR = Transform("linear [out, in] -> [in, out]", np.transpose, np.transpose)
CONV = Transform(
    "conv [out, in, k, k] -> [k, k, in, out]",
    lambda a: a.transpose(2, 3, 1, 0),
    lambda a: a.transpose(3, 2, 0, 1),
)
PATCH_EMBED = Transform(
    "patch embedding [out, 3, p, p] -> [p*p*3, out]",
    lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),
    _unpatch,
)
CONV_TRANSPOSE = Transform(
    "transposed conv [in, out, k, k] -> [in, k, k, out], no flip: stride equals the kernel",
    lambda a: a.transpose(0, 2, 3, 1),
    lambda a: a.transpose(0, 3, 1, 2),
)


@dataclass(frozen=True)
class Rule:
    """One target slot: ``target[layer] = transform(slice of source)``.

    Attributes:
        source: key in the source checkpoint.
        target: path of our parameter.
        transform: change of shape and axis order.
        layer: index into the target's leading (Stack) axis; None where there is none.
        part: ``(i, n)``: the i-th of n equal slices of the source along its first axis.
    """

    source: str
    target: str
    transform: Transform = IDENTITY
    layer: int | None = None
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Source:
    """What is known about a checkpoint before its tensors are converted.

    Attributes:
        config: the model configuration that its shapes (and config file) imply.
        rules: the table of all keys.
        ignored: source keys that are not used, with the reason.
        key_names: the family of the keys, for the model folder's record.
    """

    config: Any
    rules: list[Rule]
    ignored: dict[str, str] = field(default_factory=dict)
    key_names: str = ""


BlockRow = tuple[str, str, Transform] | tuple[str, str, Transform, tuple[int, int]]


def layer_rules(source: str, target: str, block: Iterable[BlockRow], num_layers: int) -> list[Rule]:
    """Repeat a block's rows for each layer; ``source`` holds ``{}`` for the layer's number."""
    return [
        Rule(
            source.format(layer) + row[0],
            target + row[1],
            row[2],
            layer,
            row[3] if len(row) > 3 else (0, 1),
        )
        for layer in range(num_layers)
        for row in block
    ]


def apply_rules(
    tensors: Mapping[str, np.ndarray],
    rules: Iterable[Rule],
    expected: Mapping[str, Any],
    ignored: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Fill every parameter of ``expected`` (path -> shape and dtype) from ``tensors``.

    Raises:
        SammiError: lists the missing, unknown, wrong-shaped and doubly used keys, and those whose
            values are no weights: NaN, infinite, or integers.
    """
    rules = list(rules)
    known = {rule.source for rule in rules} | set(ignored or {})
    problems = {
        "missing": sorted({rule.source for rule in rules} - set(tensors)),
        "unknown": sorted(set(tensors) - known),
        "wrong shape": [],
        "filled twice": [],
        "not filled": [],
        "no weights": [],
    }
    params: dict[str, np.ndarray] = {}
    filled: dict[str, set[int | None]] = {path: set() for path in expected}
    for rule in rules:
        if rule.target not in expected:
            problems["unknown"].append(f"{rule.source} (no parameter {rule.target})")
            continue
        slots = filled[rule.target]
        if rule.layer in slots:
            problems["filled twice"].append(_slot(rule))
        slots.add(rule.layer)
        if rule.source in tensors:
            problem = _fill(params, rule, tensors[rule.source], expected[rule.target])
            problems["wrong shape"] += [problem] if problem else []
    used = {rule.source: tensors[rule.source] for rule in rules if rule.source in tensors}
    problems["no weights"] = [
        f"{key} ({problem})" for key, tensor in used.items() if (problem := _no_weights(tensor))
    ]
    problems["not filled"] = [
        path for path, want in expected.items() if not _is_full(filled[path], want.shape)
    ]
    if any(problems.values()):
        raise SammiError(_describe(problems))
    return params


def _no_weights(tensor: np.ndarray) -> str | None:
    """What keeps a tensor from being weights, if anything."""
    if tensor.dtype.kind in "iub":
        return f"holds {tensor.dtype.name}; is the checkpoint quantized?"
    wrong = tensor.size - int(np.count_nonzero(np.isfinite(tensor)))
    return f"{wrong:,} of {tensor.size:,} values are NaN or infinite" if wrong else None


def _slot(rule: Rule) -> str:
    return rule.target if rule.layer is None else f"{rule.target}[{rule.layer}]"


def _is_full(slots: set[int | None], shape: tuple[int, ...]) -> bool:
    return slots == {None} or (bool(shape) and slots == set(range(shape[0])))


def _take(tensor: np.ndarray, part: tuple[int, int]) -> np.ndarray | None:
    index, count = part
    if count == 1:
        return tensor
    if tensor.ndim == 0 or tensor.shape[0] % count:
        return None
    return np.split(tensor, count, axis=0)[index]


def _fill(params: dict[str, np.ndarray], rule: Rule, tensor: np.ndarray, want: Any) -> str | None:
    shape = tuple(want.shape if rule.layer is None else want.shape[1:])
    piece = _take(np.asarray(tensor), rule.part)
    try:
        value = None if piece is None else rule.transform.forward(piece)
    except ValueError:  # a tensor of another rank than the transform's axes
        value = None
    if value is None or value.shape != shape:
        found = tuple(np.shape(tensor)) if value is None else value.shape
        return f"{rule.source} {found} for {_slot(rule)} {shape}"
    if rule.layer is None:
        params[rule.target] = np.asarray(value, want.dtype, order="C")
    else:
        stacked = params.setdefault(rule.target, np.zeros(want.shape, want.dtype))
        if rule.layer < len(stacked):
            stacked[rule.layer] = value
    return None


def _describe(problems: Mapping[str, list[str]]) -> str:
    parts = []
    for kind, keys in problems.items():
        if keys:
            parts.append(f"{kind} ({len(keys)}): {listed(keys, limit=_MAX_LISTED)}")
    return "the checkpoint does not fit the model: " + "; ".join(parts)


def invert_rules(params: Mapping[str, np.ndarray], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The source checkpoint again from our parameters (ignored keys excepted)."""
    pieces: dict[str, dict[int, np.ndarray]] = {}
    for rule in rules:
        value = np.asarray(params[rule.target])
        value = value if rule.layer is None else value[rule.layer]
        pieces.setdefault(rule.source, {})[rule.part[0]] = rule.transform.inverse(value)
    return {
        key: parts[0] if len(parts) == 1 else np.concatenate([parts[i] for i in sorted(parts)])
        for key, parts in pieces.items()
    }
