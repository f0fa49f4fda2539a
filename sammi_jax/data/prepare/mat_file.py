"""Matrices of whole numbers in MATLAB's files of version 5, which PASCAL-Context's labels are.

SciPy reads far more, and ends the process over some damaged files. The format is described in
MathWorks' "MAT-File Format", chapter "Level 5 MAT-File Format".
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sammi_jax.errors import SammiError, reading
from sammi_jax.typing import Integer, NpArray

_HEADER = 128  # bytes; the last two tell the order of bytes
_ORDERS = {b"IM": "<", b"MI": ">"}
_MATRIX, _PACKED = 14, 15  # types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_CLASSES = range(6, 14)  # of arrays of numbers: double, single, and integers of 8 to 32 bits
_COMPLEX = 0x0800
_MOST_BYTES = 2**28  # of an element when it is unpacked
_MEND = "copy it again"


def read_matrix(path: Path, name: str) -> Integer[NpArray, "h w"]:
    """A matrix by its name, int32.

    Raises:
        SammiError: the file holds none of that name, or is damaged; or it is no matrix of whole
            numbers.
    """
    with reading(path, _MEND):
        data = path.read_bytes()
        order = _ORDERS.get(data[_HEADER - 2 : _HEADER])
        if order is None:
            raise SammiError(f"{path}: no MATLAB file of version 5; {_MEND}")
        found = (_named(content, order, name) for content in _matrices(data, order))
        numbers = next((matrix for matrix in found if matrix is not None), None)
        if numbers is None:
            raise SammiError(f"{path}: holds no {name}; copy the owner's trainval folder")
        inside = (numbers >= -(2**31)) & (numbers < 2**31)  # False for NaN
        if not inside.all() or (numbers != np.floor(numbers)).any():
            raise ValueError(f"{name} holds other than whole numbers of 32 bits")
        return numbers.astype(np.int32)


def _matrices(data: bytes, order: str) -> Iterator[bytes]:
    for kind, content in _elements(data[_HEADER:], order, aligned=False):
        if kind == _PACKED:
            unpacked = zlib.decompressobj().decompress(content, _MOST_BYTES)
            yield from (inner for k, inner in _elements(unpacked, order) if k == _MATRIX)
        elif kind == _MATRIX:
            yield content


def _elements(data: bytes, order: str, aligned: bool = True) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element, one after another.

    Args:
        data: the elements.
        order: of bytes, as for `struct`.
        aligned: whether each begins at a multiple of 8 bytes.
    """
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:  # at most four bytes, within the head
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
            end = at + 8
        else:
            end = start + size
            end += -end % 8 if aligned else 0
        if start + size > len(data):
            raise ValueError("an element is cut short")
        yield kind, data[start : start + size]
        at = end


def _named(content: bytes, order: str, name: str) -> NpArray | None:
    """The numbers of a matrix if it has that name."""
    parts = _elements(content, order)
    (_, flags), (_, sides), (_, label) = (next(parts) for _ in range(3))
    if label.rstrip(b"\0") != name.encode():
        return None
    word, _ = struct.unpack(f"{order}II", flags)
    shape = np.frombuffer(sides, f"{order}i4").tolist()
    kind, numbers = next(parts)
    if word & 0xFF not in _CLASSES or word & _COMPLEX or kind not in _NUMBERS or len(shape) != 2:
        raise ValueError(f"{name} is no matrix of whole numbers")
    values = np.frombuffer(numbers, order + _NUMBERS[kind])
    if min(shape) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{name} has {values.size} numbers, not {shape[0]} x {shape[1]}")
    return values.reshape(shape, order="F")
