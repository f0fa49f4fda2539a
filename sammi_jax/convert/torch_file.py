"""Checkpoints of other projects as ``{key: array}``; the only module that imports torch.

Pickles are opened with ``torch.load(weights_only=True)`` and nothing else, once `convert.pickles`
has found that they call nothing and declare no more than their file holds. TorchScript archives
(OpenAI's CLIP files) and safetensors files need no torch.
"""

import hashlib
import importlib
import numbers
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from sammi_jax.convert.pickles import ForbiddenNameError, read_pickle
from sammi_jax.convert.torch_archive import Archive, read_script
from sammi_jax.errors import SammiError, reading
from sammi_jax.files import read_json
from sammi_jax.object_store import PathLike, as_path
from sammi_jax.weights.bundled import find_model
from sammi_jax.weights.hub import fetch_weights, hub_hint, hub_model, is_ours

# Weights in a folder and the configuration beside them, in order of preference: no pickle where
# there are safetensors.
_FOLDER_FILES = (
    ("model.safetensors", "config.json"),
    ("model.safetensors.index.json", "config.json"),
    ("open_clip_model.safetensors", "open_clip_config.json"),
    ("pytorch_model.bin", "config.json"),
    ("pytorch_model.bin.index.json", "config.json"),
    ("open_clip_pytorch_model.bin", "open_clip_config.json"),
)
_PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = (".safetensors", *_PICKLE_SUFFIXES)
# What training frameworks put before every key: DistributedDataParallel, Lightning and others.
_PREFIXES = ("module.", "model.", "sam.", "clip.")
_COMPILED = "_orig_mod."  # torch.compile, before any part of a key
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_TIED = 4  # how often each number of a file may be used: weights can be shared
_FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def find_source(path: PathLike) -> Path:
    """The file or folder that a user's name of a checkpoint or model folder means.

    Args:
        path: as for `find_model`; of a repository on the Hugging Face Hub that holds no model
            folder, the weights are downloaded as well.

    Raises:
        SammiError: the Hub does not give them, or there are none.
    """
    model, found = hub_model(path), find_model(path)
    if model is not None and not is_ours(found):
        fetch_weights(model, found, [name for name, _ in _FOLDER_FILES])
    return found


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file or folder holds.

    Attributes:
        tensors: floating tensors in float32, all others as stored.
        config_json: the configuration file beside the weights, where there is one.
        path: as given by the caller.
        format: "safetensors", "torch" or "torchscript".
        sha256: of the weights' bytes, shards one after another in the order of their names.
        dtypes: as stored, by key, in numpy's names.
    """

    tensors: dict[str, np.ndarray]
    config_json: dict[str, Any] | None
    path: Path
    format: str
    sha256: str
    dtypes: dict[str, str]


def read_tensors(path: PathLike) -> Checkpoint:
    """Read a weights file, or a folder as Hugging Face and OpenCLIP write it.

    A wrapper around the state dict (``{"model": ...}``) is removed, and so are the prefixes that
    training frameworks put before every key, however often.

    Raises:
        SammiError: the path does not exist, is not a checkpoint, is damaged, or is a pickle that
            would run code.
    """
    path = find_source(path)
    files, config = _locate(path)
    config_json = read_json(config) if config else None
    tensors: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    digest, kind = hashlib.sha256(), ""
    for file in files:
        _check_content(file)
        kind, values = _read_file(file)
        room = _TIED * file.stat().st_size
        for key, value in values:
            room -= value.nbytes
            if room < 0:
                raise SammiError(f"{file}: declares more numbers than it holds; download it again")
            dtypes[key] = value.dtype.name
            tensors[key] = _as_float32(value, file, key)
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    if not tensors:
        raise SammiError(f"{path}: holds no tensors; give a file with weights")
    names = plain_keys(tensors)
    if len(set(names.values())) < len(names):
        raise SammiError(f"{path}: holds the same weights twice, with {_COMPILED} and without")
    tensors = {names[key]: value for key, value in tensors.items()}
    dtypes = {names[key]: value for key, value in dtypes.items()}
    return Checkpoint(tensors, config_json, path, kind, digest.hexdigest(), dtypes)


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """Every key without the prefixes that all of them share, by the key as stored."""
    plain = {key: key.replace(_COMPILED, "") for key in keys}
    while prefix := next(
        (p for p in _PREFIXES if all(name.startswith(p) for name in plain.values())), None
    ):
        plain = {key: name.removeprefix(prefix) for key, name in plain.items()}
    return plain


def _locate(path: Path) -> tuple[list[Path], Path | None]:
    """The weights files of ``path`` and the configuration that belongs to them."""
    if path.is_dir():
        for name, config in _FOLDER_FILES:
            if (path / name).exists():
                files = _shards(path / name) if name.endswith(".index.json") else [path / name]
                return files, _existing(path / config)
        loose = sorted(p.name for p in path.iterdir() if p.suffix in _SUFFIXES)
        mend = f"give the file itself, {path / loose[0]}" if loose else "give a checkpoint"
        raise SammiError(
            f"{path}: a folder without {_FOLDER_FILES[0][0]} or another known file; {mend}"
        )
    if not path.exists():
        raise SammiError(f"{path}: no such file or folder{hub_hint(path)}")
    if path.suffix not in _SUFFIXES:
        raise SammiError(f"{path}: not a checkpoint; expected a folder or {', '.join(_SUFFIXES)}")
    beside = dict(_FOLDER_FILES).get(path.name)
    config = _existing(path.with_suffix(".json"))
    return [path], config or (_existing(path.with_name(beside)) if beside else None)


def open_clip_description(path: Path) -> dict[str, Any] | None:
    """OpenCLIP's model file beside a CLIP checkpoint, whatever its name; None: there is none.

    Raises:
        SammiError: there are several.
    """
    if path.is_dir():
        return None
    described = {
        file.name: found
        for file in sorted(path.parent.glob("*.json"))
        if file.stat().st_size < 1 << 20 and (found := _open_clip(file)) is not None
    }
    if len(described) > 1:
        raise SammiError(
            f"{path}: {', '.join(described)} lie beside it, and each describes a CLIP; rename the "
            f"right one to {path.with_suffix('.json').name}"
        )
    return next(iter(described.values()), None)


def _open_clip(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except SammiError:  # some other file of the user's
        return None
    return found if "model_cfg" in found or {"vision_cfg", "text_cfg"} <= set(found) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise SammiError(f"{index}: has no weight_map; download it again")
    other = [name for name in names.values() if Path(name).name != name or name in ("", "..")]
    if other:
        raise SammiError(f"{index}: names {other[0]!r}, which is no file beside it")
    try:
        for name in names.values():
            as_path(name)
    except SammiError as error:
        raise SammiError(f"{index}: {error}") from error
    files = [index.with_name(name) for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise SammiError(f"{index}: names {missing[0]}, which is not there; download it again")
    return files


def _check_content(file: Path) -> None:
    """Raise an error for what failed downloads leave: an empty file, a web page, a pointer."""
    if not file.is_file():
        raise SammiError(f"{file}: not a file")
    with file.open("rb") as stream:
        head = stream.read(512).lstrip()
    if not head:
        raise SammiError(f"{file}: empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise SammiError(f"{file}: a git-lfs pointer, not the weights; run 'git lfs pull'")
    if head[:15].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise SammiError(f"{file}: a web page, not the weights; download it again")


def _read_file(file: Path) -> tuple[str, Iterator[tuple[str, np.ndarray]]]:
    if file.suffix == ".safetensors":
        return "safetensors", _read_safetensors(file)
    with _decoding(file):
        archive = Archive(file) if zipfile.is_zipfile(file) else None
    if archive is not None and archive.is_script:
        return "torchscript", _read_torchscript(file, archive)
    return "torch", _read_pickle(file, archive)


def _as_float32(value: np.ndarray, file: Path, key: str) -> np.ndarray:
    if value.dtype in _FLOATS:
        return value.astype(np.float32, copy=False)
    if value.dtype.kind in "iub":
        return value
    raise _not_plain(file, key, value.dtype)


def _not_plain(file: Path, key: str, found: Any) -> SammiError:
    return SammiError(f"{file}: {key} is {found}; only plain float32, float16, bfloat16 are read")


def _read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with _decoding(file), safe_open(file, "numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (not a dictionary)
            stored = tensors.get_slice(key).get_dtype()
            if stored[:1] not in "IUB" and stored not in ("F16", "F32", "F64"):
                raise _not_plain(file, key, stored)
            yield key, tensors.get_tensor(key)


def _torch(file: Path) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise SammiError(
            f'{file}: needs PyTorch to be opened; pip install "sammi_jax[convert]"'
        ) from error


def _read_torchscript(file: Path, archive: Archive) -> Iterator[tuple[str, np.ndarray]]:
    with _decoding(file):
        found = list(read_script(archive))
    yield from found


def _read_pickle(file: Path, archive: Archive | None) -> Iterator[tuple[str, np.ndarray]]:
    torch = _torch(file)
    with _decoding(file):
        _check_pickles(file, archive)
        with torch.serialization.safe_globals(_numpy_globals()):
            state = torch.load(
                file, map_location="cpu", weights_only=True, mmap=archive is not None
            )
    yield from _state_dict(state, file, torch)


_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the storages' names


def _check_pickles(file: Path, archive: Archive | None) -> None:
    """Raise an error unless the file's pickles call nothing and declare no more than it holds."""
    if archive is not None:
        read_pickle(BytesIO(archive.read("data.pkl")), archive.size)
        return
    with file.open("rb") as stream:
        for _ in range(_LEGACY_PICKLES):
            read_pickle(stream, file.stat().st_size)


@contextmanager
def _decoding(file: Path) -> Iterator[None]:
    """Errors of whatever kind that a broken or hostile file causes, as a `SammiError`."""
    with reading(file, "download it again", "damaged or cut short"):
        try:
            yield
        except ForbiddenNameError as error:
            raise _forbidden(file, str(error)) from error


def _forbidden(file: Path, name: str) -> SammiError:
    if name.startswith("torch._utils._rebuild"):
        return _not_plain(file, "a tensor", f"made by {name}")
    return SammiError(
        f"{file}: the pickle would run {name}, and code in checkpoints is never run; save the "
        "state dict alone (or safetensors) and convert that"
    )


def _numpy_globals() -> list[Any]:
    """What numpy arrays in a pickle need: constructors of arrays, under numpy 1's and 2's names."""
    multiarray = importlib.import_module("numpy._core.multiarray")
    functions = [multiarray._reconstruct, multiarray.scalar]
    old_names = [(f, f"numpy.core.multiarray.{f.__name__}") for f in functions]
    types = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    encode = importlib.import_module("_codecs").encode  # pickle's way to store bytes
    return [*functions, *old_names, np.ndarray, np.dtype, *types, encode]


def _state_dict(state: Any, file: Path, torch: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a loaded object, without its wrapper."""
    if isinstance(state, Mapping):
        state = next((state[w] for w in _WRAPPERS if isinstance(state.get(w), Mapping)), state)
    if not isinstance(state, Mapping) or not state:
        raise SammiError(f"{file}: holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not isinstance(name, str):
            raise SammiError(f"{file}: has a key of type {type(name).__name__}, not a state dict")
        if isinstance(value, torch.Tensor):
            yield name, _tensor_to_numpy(value, file, name, torch)
        elif isinstance(value, np.ndarray | np.generic | numbers.Number):
            yield name, np.asarray(value)
        else:
            raise SammiError(
                f"{file}: {name} is a {type(value).__name__}, not a tensor; "
                f"a state dict is expected at the top or under {', '.join(_WRAPPERS)}"
            )


def _tensor_to_numpy(tensor: Any, file: Path, key: str, torch: Any) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # numpy has none of its own: the same 16 bits
            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise _not_plain(file, key, tensor.dtype) from error
