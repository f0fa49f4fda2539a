"""COCO's run-length masks: lengths of alternating runs of 0 and 1, in column order.

They are a list of numbers or a string. The string holds each number in characters of 48 + six bits:
five bits of the value, the lowest first, and one bit that says that more follow; the last five hold
the sign. From the fourth run on, the number is the difference to the run before the last.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sammi_jax.errors import SammiError, reading
from sammi_jax.typing import NpArray

_FIRST_CHARACTER = 48
_MORE, _SIGN, _BITS = 0x20, 0x10, 0x1F
_MOST_BITS = 60  # of a number: more would take time that grows with the square of their number


def decode_rle(segmentation: Mapping[str, Any], where: str) -> NpArray:
    """The mask, bool ``[H, W]``, of ``{"size": [H, W], "counts": str | bytes | list}``.

    Args:
        segmentation: compressed or uncompressed runs.
        where: named in errors.

    Raises:
        SammiError: the runs do not fill the mask, or are no runs.
    """
    with reading(where, "the file is damaged, fetch it again", "holds no run-length mask"):
        height, width = map(operator.index, segmentation["size"])
        counts = segmentation["counts"]
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        runs = unpack_runs(counts) if isinstance(counts, str) else list(map(operator.index, counts))
    if min(*runs, height, width, 0) < 0 or sum(runs) != height * width:
        raise SammiError(
            f"{where}: a run-length mask covers {sum(runs)} pixels, not {height} x {width}; "
            "the file is damaged, fetch it again"
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def unpack_runs(text: str) -> Sequence[int]:
    """The run lengths that a compressed string holds.

    Raises:
        ValueError: a number of more than 60 bits.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - _FIRST_CHARACTER
        value |= (code & _BITS) << shift
        shift += 5
        if shift > _MOST_BITS:
            raise ValueError(f"a run of more than {_MOST_BITS} bits")
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs


def encode_rle(mask: NpArray) -> dict[str, Any]:
    """``{"size": [H, W], "counts": str}``, compressed, of a mask, bool ``[H, W]``."""
    return encode_classes(mask).get(1) or _compressed(mask.shape, [mask.size])


def encode_classes(labels: NpArray) -> dict[int, dict[str, Any]]:
    """The compressed mask of every value of a label map, ``[H, W]``, in one pass over it."""
    flat = labels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    starts, stops, values = edges[:-1], edges[1:], flat[edges[:-1]]
    order = np.argsort(values, kind="stable")
    found = {}
    for runs in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        # up to each run, and the run itself
        ends = np.stack([starts[runs], stops[runs]], axis=1).ravel()
        counts = np.diff(ends, prepend=0).tolist()
        rest = flat.size - int(ends[-1])
        found[int(values[runs[0]])] = _compressed(labels.shape, [*counts, rest] if rest else counts)
    return found


def _compressed(size: Sequence[int], runs: Sequence[int]) -> dict[str, Any]:
    return {"size": [int(side) for side in size], "counts": pack_runs(runs)}


def pack_runs(runs: Sequence[int]) -> str:
    """The compressed string of run lengths: `unpack_runs` undoes it."""
    characters: list[str] = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            code, value = value & _BITS, value >> 5
            done = value == (-1 if code & _SIGN else 0)
            characters.append(chr(_FIRST_CHARACTER + code + (0 if done else _MORE)))
            if done:
                break
    return "".join(characters)
