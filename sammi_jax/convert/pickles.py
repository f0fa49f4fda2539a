"""Pickles of PyTorch, read without calling anything that they name.

A pickle is a program: it names functions and says what they are called with. Here no name is looked
up. Those that state dicts need become plain records, and every other name is refused. Whatever a
pickle says of sizes is checked against the bytes that there are. `convert.torch_file` reads a
pickle here before PyTorch does.

The interpreter is Python's own in Python (``pickle._Unpickler``): the faster one in C can be made
to reserve any amount of memory by a few bytes.
"""

import math
import pickle
import re
from dataclasses import dataclass
from typing import Any

# Names in pickles that PyTorch and NumPy write, and that have no part in the values.
_PLAIN = {
    "_codecs.encode",
    "collections.Counter",
    "numpy.dtype",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
}
_SCRIPT = ("__torch__.", "torch.jit._pickle.")
_TENSORS = {
    f"torch._utils.{name}"
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
}
_WRAPPED = {
    f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")
}
_TYPED = "torch._tensor._rebuild_from_type_v2"  # a function, a type, and the function's arguments
_ARRAYS = re.compile(r"numpy\.(_core|core)\.multiarray\.(_reconstruct|scalar)")
_NUMPY = re.compile(r"numpy\.(ndarray|dtypes\.\w+DType|dtype\[\w+\])")
_TORCH_DTYPE = re.compile(r"torch\.(q?u?int\d+\w*|b?float\d\w*|complex\d+|bool|half|double|long)")
_STORAGE = re.compile(r"torch\.(?:storage\.)?(\w*)Storage")
_ARRAY_DTYPE = re.compile(r"[<>|=]?[fiub?]\d{0,2}")
# Numbers of one storage: NumPy's name of the type, and bytes. Others take one byte at least.
_DTYPES = {
    "Double": ("float64", 8),
    "Float": ("float32", 4),
    "Half": ("float16", 2),
    "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8),
    "Int": ("int32", 4),
    "Short": ("int16", 2),
    "Char": ("int8", 1),
    "Byte": ("uint8", 1),
    "Bool": ("bool", 1),
}
_MOST_AXES = 64  # NumPy's and PyTorch's bound
_SCALARS = (str, int, float, bytes, type(None))


class ForbiddenNameError(Exception):
    """A pickle names what no state dict needs; the message is the name."""


class Dictionary(dict):
    """A dictionary with attributes, as PyTorch gives its state dicts."""


@dataclass(eq=False)
class Record:
    """What a name in a pickle stands for, or what calling it would give.

    Attributes:
        name: with its module.
        state: what the pickle sets it to.
    """

    name: str
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        if self.name == "numpy.dtype" and state[2:5] != (None, None, None):
            raise ValueError("an array with fields")
        self.state = state


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in the file.

    Attributes:
        dtype: NumPy's name of their type, or "" for one that NumPy lacks.
        key: the storage's name in the file.
        numel: how many.
    """

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, eq=False)
class View:
    """A tensor: numbers of a storage, at an offset and with strides counted in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(stream: Any, room: int, script: bool = False) -> Any:
    """What a pickle holds: dictionaries, lists, tuples, numbers, texts, and the records above.

    Args:
        stream: an open binary file, read to the end of the pickle.
        room: bytes of the whole file, which hold all that the pickle declares.
        script: whether the names of TorchScript's classes are known.

    Raises:
        ForbiddenNameError: the pickle names something that it has no need of.
        Exception: it is damaged: of any type.
    """
    return _Reader(_Stream(stream, room), room, script).load()


class _Stream:
    """A file of which nobody can ask for more than it holds."""

    def __init__(self, stream: Any, room: int):
        self._stream, self._room = stream, room

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, self._room))

    def readline(self) -> bytes:
        return self._stream.readline()


_Interpreter: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


class _Reader(_Interpreter):
    def __init__(self, stream: Any, room: int, script: bool):
        super().__init__(stream)
        self._room, self._script = room, script
        self._used: dict[str, int] = {}  # bytes of each storage

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return _ordered
        known = (
            full in _PLAIN | _TENSORS | _WRAPPED | {_TYPED}
            or any(p.fullmatch(full) for p in (_ARRAYS, _NUMPY, _TORCH_DTYPE, _STORAGE))
            or (self._script and full.startswith(_SCRIPT))
        )
        if not known:
            raise ForbiddenNameError(full)
        return Record(full)

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, numel, *_ = pid
        found = isinstance(storage, Record) and _STORAGE.fullmatch(storage.name)
        if kind != "storage" or not found or type(key) is not str or type(numel) is not int:
            raise ValueError("a storage without a type, a name or a size")
        dtype, size = _DTYPES.get(found[1], ("", 1))
        self._used[key] = max(self._used.get(key, 0), numel * size)
        if numel < 0 or sum(self._used.values()) > self._room:
            raise ValueError(f"declares {numel} numbers, more than the file holds")
        return Storage(dtype, key, numel)

    def call(self, function: Any, arguments: Any) -> Any:
        """What calling a name gives."""
        if function is _ordered:
            return _ordered(*arguments)
        if not isinstance(function, Record) or not isinstance(arguments, tuple):
            raise ValueError("calls what is no function")
        name = function.name
        if name == _TYPED:
            return self.call(arguments[0], arguments[2])
        if name in _TENSORS:
            return _view(*arguments[:4])
        if name in _WRAPPED:
            return arguments[0]
        array = _ARRAYS.fullmatch(name)
        if (
            (name == "numpy.dtype" and not _ARRAY_DTYPE.fullmatch(arguments[0]))
            or (array and array[2] == "_reconstruct" and arguments[1] != (0,))
            or (name == "_codecs.encode" and arguments[1:] not in (("latin1",), ("latin-1",)))
            or _NUMPY.fullmatch(name)
            or _STORAGE.fullmatch(name)
            or name == "torch.Tensor"
        ):
            raise ForbiddenNameError(f"{name} with arguments that no state dict has")
        return Record(name)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        found = Dictionary()
        _set(found, items)
        self.append(found)

    # Opcodes that PyTorch's files have. Left out are calls in other forms, sets, and what reserves
    # memory before it reads.
    dispatch = {  # noqa: RUF012  (as in the base class)
        code: load
        for code, load in _Interpreter.dispatch.items()
        if bytes([code])
        not in (
            pickle.INST,
            pickle.OBJ,
            pickle.NEWOBJ_EX,
            pickle.EXT1,
            pickle.EXT2,
            pickle.EXT4,
            pickle.PERSID,
            pickle.EMPTY_SET,
            pickle.ADDITEMS,
            pickle.FROZENSET,
            pickle.BYTEARRAY8,
            pickle.NEXT_BUFFER,
            pickle.READONLY_BUFFER,
        )
    }
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }


def _ordered(pairs: Any = ()) -> Dictionary:
    found = Dictionary()
    for key, value in pairs:
        _set(found, [key, value])
    return found


def _set(dictionary: Any, items: list[Any]) -> None:
    """Keys are scalars: hashing tuples in tuples without end would overflow the stack."""
    if not isinstance(dictionary, dict):
        raise ValueError("sets an item of what is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if type(key) is tuple else (key,)
        if not all(isinstance(part, _SCALARS) for part in parts):
            raise ValueError(f"a key of type {type(key).__name__}")
        dictionary[key] = value


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> View:
    whole = (offset, *shape, *strides)
    plain = len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in whole)
    if not isinstance(storage, Storage) or not plain:
        raise ValueError("a tensor without a storage or a shape")
    steps = [(side - 1) * step for side, step in zip(shape, strides, strict=True)]
    last = offset + sum(steps)
    empty = 0 in shape
    # A stride of 0 repeats a number: a file of a few bytes could declare any shape.
    if not empty and (last >= storage.numel or math.prod(shape) > storage.numel):
        raise ValueError(f"a tensor of shape {shape} in {storage.numel} numbers")
    return View(storage, offset, tuple(shape), tuple(strides))
