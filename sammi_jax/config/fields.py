"""Dataclasses to plain dictionaries and back with every name and type checked; ``a.b=value``."""

import ast
import dataclasses
import difflib
import sys
import types
import typing
from typing import Any, Literal, TypeVar, cast

from sammi_jax.errors import SammiError

T = TypeVar("T")
C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain dictionaries, numbers, strings and lists (JSON's types)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return value

    return plain(config)


def from_dict(cls: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass ``cls`` from plain dictionaries, checking every name and type.

    Raises:
        SammiError: an unknown field (the nearest name is given), one that is missing, or a value of
            another type.
    """
    if not isinstance(values, dict):
        raise SammiError(f"{where or cls.__name__}: expected fields, found {values!r}")
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        path = f"{where}.{name}" if where else name
        if name not in hints:
            raise SammiError(f"{path}: no such field{_nearest(name, hints)}")
        arguments[name] = _coerce(hints[name], value, path)
    for field in dataclasses.fields(cast(Any, cls)):
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and field.name not in arguments:
            raise SammiError(f"{where or cls.__name__}: {field.name} is missing")
    return cls(**arguments)


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a is not type(None)]
        return _coerce(hint, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, path)
    if origin is Literal:
        if value in arguments:
            return value
        raise SammiError(f"{path}: {value!r} is none of {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            return tuple(
                _coerce(k, v, f"{path}[{i}]")
                for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise SammiError(f"{path}: {value!r} is too large")
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    kind = hint if origin else getattr(hint, "__name__", hint)
    raise SammiError(f"{path}: {value!r} is not of type {kind}")


def override(config: C, text: str) -> C:
    """The configuration with one field changed, given as ``a.b=value`` (Python or plain text).

    Raises:
        SammiError: not of that form, no such field, or a value of another type.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SammiError(f"--set {text}: write it as field=value, for example optim.peak_lr=1e-4")
    return _replace(config, path.strip().split("."), value.strip(), "")


def _replace(config: Any, names: list[str], text: str, where: str) -> Any:
    name, *rest = names
    path = f"{where}.{name}" if where else name
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not rest:
        return _replace_leaf(type(config), fields, name, text, where)
    if name not in fields:
        from_dict(type(config), {name: None}, where)  # raises, with the nearest name
    if not dataclasses.is_dataclass(fields[name]):
        raise SammiError(f"{path}: is {fields[name]!r}, which has no field {rest[0]}")
    fields[name] = _replace(fields[name], rest, text, path)
    return type(config)(**fields)


def _replace_leaf(cls: type, fields: dict[str, Any], name: str, text: str, where: str) -> Any:
    try:
        return from_dict(cls, fields | {name: _literal(text)}, where)
    except SammiError as error:
        try:  # a text that reads as a number, for a field that holds text
            return from_dict(cls, fields | {name: text}, where)
        except SammiError:
            raise error from None


def _literal(text: str) -> Any:
    plain = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
