"""Hostile bytes and hostile JSON, from valid ones, as strategies of hypothesis."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_EDGE = 300  # heads and tails of files are where their sizes stand

_DEEP = "@deep@"  # stands for a value that json.dumps could not write
_DEPTH = 100_000


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the files with one to six changes; at times as it is."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        _change(draw, data, seeds)
    return bytes(data)


def _change(draw: st.DrawFn, data: bytearray, seeds: Sequence[bytes]) -> None:
    kind = draw(st.sampled_from("fffnnnnbtsdrz"))
    at = _place(draw, len(data))
    if kind == "f":
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "b":
        data[at] = draw(st.integers(0, 255))
    elif kind == "n":
        size, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
        number = draw(st.sampled_from(_NUMBERS)) % 256**size
        data[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
    elif kind == "t":
        del data[at:]
    elif kind == "s":
        other = draw(st.sampled_from(seeds))
        start = _place(draw, len(other))
        data[at:at] = other[start : start + draw(st.integers(1, 200))]
    elif kind == "d":
        del data[at : at + draw(st.integers(1, 64))]
    elif kind == "r":
        piece = bytes(data[at : at + draw(st.integers(1, 64))])
        data[at:at] = piece * draw(st.sampled_from((1, 2, 50)))
    else:
        size = draw(st.integers(1, 64))
        data[at : at + size] = bytes(len(data[at : at + size]))


def _place(draw: st.DrawFn, size: int) -> int:
    """Mostly near the beginning or the end."""
    where = draw(st.sampled_from("hhta"))
    if where == "h":
        return draw(st.integers(0, min(size, _EDGE) - 1))
    if where == "t":
        return size - 1 - draw(st.integers(0, min(size, _EDGE) - 1))
    return draw(st.integers(0, size - 1))


texts = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "a",
            "model",
            "\n",
            "a\nb",
            "\x1b[31mred",
            "\u2028",
            "\ud800",
            "\x00",
            "{}",
            "{",
            ",",
            ", ",
            ", b",
            ";",
            "../../etc/passwd",
            "/etc/passwd",
            "a" * 300,
            "a" * 20_000,
            "1e999",
            "nan",
            "__class__",
            "self",
            "9" * 30,
            "..",
            ".",
            "a/b",
            "\\",
            "\u202eabc",
            "é",
            "%s",
            "\t",
        ]
    ),
    st.text(max_size=8),
)
numbers = st.one_of(
    st.sampled_from(
        [
            0,
            -1,
            1,
            2,
            3,
            7,
            255,
            256,
            2**31,
            -(2**31),
            2**32,
            2**53,
            2**63,
            2**64,
            10**9,
            10**12,
            10**19,
            10**400,
            -(10**400),
        ]
    ),
    st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), -float("inf"), float("nan")]),
    st.integers(-300, 300),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=4),
    st.dictionaries(texts, scalars, max_size=3),
    st.lists(st.lists(numbers, max_size=3), max_size=3),
    st.sampled_from([_DEEP, [_DEEP], [[]], {}, [], [{}], {"": {}}, [0] * 1000]),
)


@st.composite
def hostile_value(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """A value of JSON's types: one of the seeds with one to three of its parts replaced."""
    root = [copy.deepcopy(draw(st.sampled_from(seeds)))]
    for _ in range(draw(st.integers(1, 3))):
        parents = list(_containers(root))
        parent = draw(st.sampled_from(parents))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        if not keys:
            continue
        key = draw(st.sampled_from(keys))
        kind = draw(st.sampled_from("vvvvvdkc"))
        if parent is root or kind == "v":
            parent[key] = copy.deepcopy(draw(values))  # it may be changed, too
        elif kind == "d":
            del parent[key]
        elif isinstance(parent, dict):
            value = parent.pop(key) if kind == "k" else copy.deepcopy(parent[key])
            parent[draw(texts)] = value
        else:
            parent.insert(key, copy.deepcopy(draw(values)))
    return root[0]


def _containers(value: Any) -> Any:
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _containers(item)


def dumps(value: Any) -> bytes:
    """As JSON, with what Python's reader also takes: NaN, Infinity, lone surrogates, depth."""
    text = json.dumps(value).replace(f'"{_DEEP}"', "[" * _DEPTH + "]" * _DEPTH)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def hostile_json(draw: st.DrawFn, seeds: Sequence[Any]) -> bytes:
    """A JSON file: `hostile_value` written, or the bytes of a valid one changed."""
    if draw(st.integers(0, 3)):
        return dumps(draw(hostile_value(seeds)))
    return draw(mutated([dumps(seed) for seed in seeds]))


@st.composite
def hostile_text(draw: st.DrawFn, seeds: Sequence[str]) -> bytes:
    """A text file: lines of valid ones and hostile ones, or the bytes of a valid one changed."""
    if draw(st.booleans()):
        return draw(mutated([seed.encode() for seed in seeds]))
    lines = draw(st.sampled_from(seeds)).splitlines()
    lines += draw(st.lists(texts, max_size=4))
    lines = draw(st.permutations(lines)) if len(lines) < 8 else lines
    return "\n".join(lines).encode("utf-8", "surrogatepass")
