"""Model folders: ``config.json``, ``model.safetensors``, and for text ``tokenizer.json``.

The weights' names are our parameter paths (``"vision/norm_pre/scale"``); ``config.json`` is

    {"format": 1, "kind": "clip" | "sam" | "catseg" | "sammi", "config": {...}, "source": {...},
     "licence": "...", "converter": "0.1.0", "initialized": [...]}

A folder is written atomically. Reading checks every name, shape and dtype against the model that
the configuration describes. `weights.provenance` says what ``source`` and ``licence`` hold.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sammi_jax import __version__
from sammi_jax.config.fields import from_dict, to_dict
from sammi_jax.config.model import SegmenterConfig
from sammi_jax.errors import SammiError, listed, reading
from sammi_jax.files import atomic_folder, check_destination, read_json, write_json
from sammi_jax.object_store import AnyPath, PathLike, as_path, is_bucket
from sammi_jax.text.tokenizer import TOKENIZER_FILE, Tokenizer
from sammi_jax.weights.bundled import find_model
from sammi_jax.weights.hub import hub_hint, hub_model
from sammi_jax.weights.kinds import CONFIGS, KINDS, Kind, ModelConfig, buffer_paths, expected_params

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

DTYPES: dict[str, Any] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_STORED = {  # safetensors' names
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in the file."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.size * np.dtype(DTYPES.get(self.dtype, self.dtype)).itemsize


@dataclass(frozen=True)
class Description:
    """A model folder without its weights; names, shapes and dtypes are checked."""

    path: Path
    kind: Kind
    config: Any  # of the class that belongs to the kind
    tensors: dict[str, Stored]
    tokenizer_path: Path | None
    meta: dict[str, Any]  # config.json as it stands


@dataclass(frozen=True)
class ModelFolder:
    """A model folder in memory."""

    kind: Kind
    config: Any  # of the class that belongs to the kind
    params: dict[str, np.ndarray]  # float32, also where the file has 16 bits
    tokenizer_path: Path | None
    meta: dict[str, Any]


def is_model_folder(path: PathLike) -> bool:
    """Whether ``path`` has a model folder's config.json; nothing else is checked.

    Raises:
        SammiError: the Hugging Face Hub does not give the model (`find_model`).
    """
    folder = find_model(path)
    try:
        meta = read_json(folder / CONFIG_FILE)
    except SammiError:
        return False
    return "kind" in meta and "converter" in meta


def write_model(
    folder: PathLike,
    kind: Kind,
    config: ModelConfig,
    params: Mapping[str, Any],
    *,
    source: Mapping[str, Any],
    licence: str,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    initialized: Sequence[str] = (),
) -> AnyPath:
    """Write a model folder atomically and return its absolute path.

    Args:
        folder: must not exist, or be empty.
        kind: which model.
        config: of the class that belongs to the kind.
        params: every parameter of the model by path.
        source: where the weights come from (`weights.provenance`).
        licence: of the weights.
        tokenizer: written into the folder too.
        dtype: one of `DTYPES`, for the floating parameters; buffers stay float32.
        initialized: parts that were in no checkpoint and start fresh.

    Raises:
        SammiError: the folder exists and is not empty, ``dtype`` is unknown or too small for a
            parameter, or parameters are missing, unknown or of another shape.
    """
    folder = check_destination(folder)
    if dtype not in DTYPES:
        raise SammiError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    found = {path: Stored(tuple(v.shape), np.dtype(v.dtype).name) for path, v in params.items()}
    _check_tensors(folder, found, config)
    meta = {
        "format": FORMAT,
        "kind": kind,
        "config": to_dict(config),
        "source": dict(source),
        "licence": licence,
        "converter": __version__,
        "initialized": list(initialized),
    }
    with atomic_folder(folder, CONFIG_FILE) as temporary:
        write_json(temporary / CONFIG_FILE, meta)
        exact = buffer_paths(config)  # SAM's Fourier matrix: rounding it would move every point
        stored = {
            path: to_store(value, np.dtype(np.float32) if path in exact else DTYPES[dtype], path)
            for path, value in params.items()
        }
        save_file(stored, temporary / WEIGHTS_FILE)
        # safetensors makes files for the owner's eyes only
        (temporary / WEIGHTS_FILE).chmod((temporary / CONFIG_FILE).stat().st_mode)
        if tokenizer is not None:
            tokenizer.save(temporary)
    return folder


def read_model(folder: PathLike, kinds: Sequence[str] = KINDS) -> ModelFolder:
    """Read a model folder of one of ``kinds``, its floating parameters as float32.

    Raises:
        SammiError: as `describe`.
    """
    found = describe(folder, kinds)
    with _open_weights(found.path / WEIGHTS_FILE) as file:
        params = {path: _widen(file.get_tensor(path)) for path in found.tensors}
    return ModelFolder(found.kind, found.config, params, found.tokenizer_path, found.meta)


def describe(folder: PathLike, kinds: Sequence[str] = KINDS) -> Description:
    """Check a model folder without reading its weights.

    Raises:
        SammiError: not a model folder, of another kind, with a configuration of which no model can
            be made, or with weights that are cut short or do not fit the configuration.
    """
    meta, name, folder = read_meta(folder), _name(folder), find_model(folder)
    kind = meta.get("kind")
    if kind not in KINDS:
        raise SammiError(f"{name}: kind {kind!r} is none of {', '.join(KINDS)}")
    if kind not in kinds:
        raise SammiError(
            f"{name}: holds a {kind} model, not {' or '.join(kinds)}; give another folder, or "
            f"make one: sammi convert {kinds[-1]} SRC DST"
        )
    config = _read_config(folder / CONFIG_FILE, kind, meta.get("config"))
    with _open_weights(folder / WEIGHTS_FILE) as file:
        slices = {path: file.get_slice(path) for path in file.keys()}  # noqa: SIM118  (not a dictionary)
        tensors = {
            path: Stored(tuple(s.get_shape()), _STORED.get(name := str(s.get_dtype()), name))
            for path, s in slices.items()
        }
    _check_tensors(folder / WEIGHTS_FILE, tensors, config)
    tokenizer = folder / TOKENIZER_FILE
    return Description(
        folder, kind, config, tensors, tokenizer if tokenizer.is_file() else None, meta
    )


def weights_digest(folder: PathLike) -> str:
    """SHA-256 of the weights file of a model folder, to tell whether two models are the same."""
    with (find_model(folder) / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_RUN_MODELS = ("model", "best")  # model folders in a run's folder (`training.loop`)


def read_meta(folder: PathLike) -> dict[str, Any]:
    """The ``config.json`` of a model folder as it stands; nothing else of the folder is read.

    Raises:
        SammiError: not a model folder, or one of another format, or `find_model` fails.
    """
    is_here, name, folder = hub_model(folder) is None, _name(folder), find_model(folder)
    if is_here and not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise SammiError(
            f"{name}: {what}; a model folder is made by 'sammi convert'{hub_hint(folder)}"
        )
    if not (folder / CONFIG_FILE).exists():
        inside = [name for name in _RUN_MODELS if (folder / name / CONFIG_FILE).exists()]
        if inside:
            raise SammiError(
                f"{name}: is the folder of a training run; give {folder / inside[0]}, its model"
            )
        raise SammiError(f"{name}: has no {CONFIG_FILE}; a model folder is made by 'sammi convert'")
    meta = read_json(folder / CONFIG_FILE)
    if "kind" not in meta:
        raise SammiError(
            f"{name}: not a model folder (its {CONFIG_FILE} has no kind); "
            f"convert it first: sammi convert {{clip,sam,catseg,sammi}} {name} DST"
        )
    if meta.get("format") != FORMAT:
        raise SammiError(f"{name}: format {meta.get('format')!r}, not {FORMAT}; convert it again")
    parts = meta.get("initialized") or []
    if not _is_origin(meta) or not _are_texts(parts):
        raise SammiError(
            f"{name}: the source, licence or initialized of its {CONFIG_FILE} has another form "
            "than 'sammi convert' writes; convert it again"
        )
    return meta


def _is_origin(record: Any) -> bool:
    """Whether a record has the form that `weights.provenance` describes."""
    if not isinstance(record, dict):
        return False
    source, licence = record.get("source", {}), record.get("licence", "")
    licence = "" if licence is None else licence
    if not isinstance(source, dict) or not _are_texts([record.get("kind"), licence]):
        return False
    parts = source.get("from", {})
    return (
        isinstance(parts, dict)
        and all(_is_origin(part) and {"source", "licence"} <= set(part) for part in parts.values())
        and _are_texts([source.get(name, "") for name in ("file", "hub", "commit", "published")])
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _name(folder: PathLike) -> str:
    """What errors call a folder: a model on the Hugging Face Hub by the name that the user gave."""
    return str(as_path(folder) if is_bucket(folder) else hub_model(folder) or find_model(folder))


def _read_config(file: Path, kind: str, values: Any) -> ModelConfig:
    try:
        config = from_dict(CONFIGS[kind], values)
    except SammiError as error:
        raise SammiError(f"{file}: {error}") from error
    if isinstance(config, SegmenterConfig) and (config.masks is None) != (kind == "catseg"):
        raise SammiError(f"{file}: kind {kind} does not go with masks = {config.masks}")
    return config


@contextmanager
def _open_weights(file: Path) -> Iterator[Any]:
    """The memory-mapped weights; damage found while reading raises a `SammiError`."""
    if not file.is_file():
        raise SammiError(f"{file}: missing; convert the model again")
    with (
        reading(file, "convert it again", "damaged or cut short"),
        safe_open(file, "numpy") as weights,
    ):
        yield weights


def _check_tensors(where: AnyPath, found: Mapping[str, Stored], config: ModelConfig) -> None:
    try:
        expected = expected_params(config)
    except SammiError as error:
        raise SammiError(f"{where}: {error}") from error
    wrong = [f"missing {path}" for path in expected if path not in found]
    wrong += [f"unknown {path}" for path in found if path not in expected]
    for path, want in expected.items():
        if path in found and found[path].shape != want.shape:
            wrong.append(f"{path} has shape {found[path].shape}, not {want.shape}")
        elif path in found and not _fits(found[path].dtype, want.dtype.name):
            wrong.append(f"{path} is {found[path].dtype}, not {want.dtype.name}")
    if wrong:
        raise SammiError(
            f"{where}: does not fit its configuration: {listed(wrong, separator='; ')}"
        )


def _fits(stored: str, wanted: str) -> bool:
    return stored in DTYPES if wanted == "float32" else stored == wanted


def to_store(value: Any, dtype: np.dtype, path: str) -> np.ndarray:
    """A floating tensor in that dtype, others as they are, as safetensors wants to have them.

    In C order: of any other memory order safetensors would write the bytes as they are.

    Raises:
        SammiError: a number is too large for the dtype.
    """
    value = np.asarray(value)
    if value.dtype != np.float32:
        dtype = value.dtype
    with np.errstate(over="ignore"):  # an error of ours follows
        stored = np.ascontiguousarray(value, dtype).reshape(value.shape)
    if dtype == np.float16 and np.isinf(stored).sum() > np.isinf(value).sum():
        raise SammiError(f"{path}: holds numbers too large for float16; use float32 or bfloat16")
    return stored


def _widen(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32, copy=False) if value.dtype.name in DTYPES else value


def load_tokenizer(folder: PathLike, path: Path | None, config: Any) -> Tokenizer:
    """The tokenizer of a model folder.

    Args:
        folder: as errors should name it.
        path: of its ``tokenizer.json`` (`ModelFolder.tokenizer_path`). Not the `ModelFolder`, whose
            weights what reads the tokenizer later would keep in memory.
        config: of the model.

    Raises:
        SammiError: it holds none, or one of another model.
    """
    if path is None:
        raise SammiError(
            f"{folder}: no tokenizer.json, so text cannot be read; convert again with --tokenizer, "
            "a folder with tokenizer.json, vocab.json and merges.txt, or OpenAI's vocabulary"
        )
    found = Tokenizer.from_folder(path.parent)
    rows = getattr(config, "clip", config).text.vocab_size
    if found.vocab_size > rows:
        raise SammiError(
            f"{path}: has {found.vocab_size} tokens, but the model has rows for {rows}; convert "
            "again with the model's tokenizer"
        )
    return found
