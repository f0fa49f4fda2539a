"""Configurations in files: an experiment in Python, and a run's as JSON."""

import difflib
import hashlib
import json
import runpy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sammi_jax.config.experiment import CaptionConfig, PromptConfig, SegmentConfig, TrainConfig
from sammi_jax.config.fields import from_dict, override, to_dict
from sammi_jax.errors import SammiError, one_line
from sammi_jax.files import read_json, write_json
from sammi_jax.object_store import AnyPath, as_path, exists

_PACKAGE = Path(__file__).resolve().parent.parent
# The configurations are inside the installed package, and beside the package in a checkout.
_PACKAGED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_names() -> list[str]:
    """Names of the packaged configurations."""
    files = next((folder.glob("*.py") for folder in _PACKAGED if folder.is_dir()), ())
    return sorted(file.stem for file in files)


def find_config(name_or_file: str | Path) -> Path:
    """The file of a packaged configuration, or the file that is given.

    Raises:
        SammiError: there is no such name and no such file; the message gives the nearest name.
    """
    with suppress(OSError):  # too long for a path
        if Path(name_or_file).is_file():
            return Path(name_or_file)
    names = config_names()
    if str(name_or_file) in names:
        return next(folder for folder in _PACKAGED if folder.is_dir()) / f"{name_or_file}.py"
    near = difflib.get_close_matches(Path(name_or_file).stem, names, n=1)
    mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}, or give a file"
    raise SammiError(f"{name_or_file}: no such configuration; {mend}")


def load_config(name_or_file: str | Path, overrides: Sequence[str] | None = None) -> TrainConfig:
    """Run a configuration file and apply ``a.b=value`` overrides.

    Args:
        name_or_file: the name of a packaged configuration, such as ``openshapes_clip``, or a
            Python file that defines ``config``.
        overrides: applied in order.

    Raises:
        SammiError: the file is missing, fails, or defines no `TrainConfig` named ``config``; an
            override names no field (the nearest name is given) or has a value of another type; or
            a path is a URL that cannot be used.
    """
    path = find_config(name_or_file)
    try:
        config = runpy.run_path(str(path)).get("config")
    except SammiError:
        raise
    except Exception as error:  # a configuration file is any Python
        raise SammiError(f"{path}: {type(error).__name__}: {one_line(error)}") from error
    except SystemExit as error:
        raise SammiError(
            f"{path}: ends the program (SystemExit); it may only define config"
        ) from error
    if not isinstance(config, TrainConfig):
        raise SammiError(f"{path}: defines no TrainConfig named config")
    for text in overrides or []:
        config = override(config, text)
    _check_urls(to_dict(config))
    return config


def _check_urls(value: Any) -> None:
    """Raise for a URL that no path can be, before anything is made."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_urls(item)
    elif isinstance(value, str):
        as_path(value)


def resolved(config: TrainConfig) -> dict[str, Any]:
    """The experiment as JSON's types, with the name of its task."""
    return {"kind": config.task.kind, **to_dict(config)}


def config_digest(config: TrainConfig) -> str:
    """SHA-256 of the whole experiment, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(resolved(config), sort_keys=True).encode()).hexdigest()


_MAY_CHANGE = (
    "mesh",
    "eval",
    "data.data_dir",
    "data.workers",
    "log_every",
    "checkpoint_every",
    "keep",
    "validation",
    "validate_every",
    "max_loss_ratio",
    "tensorboard",
    "profile_steps",
)


def save_config(config: TrainConfig, workdir: AnyPath) -> None:
    """Write ``workdir/config.json``, or check that it holds the same experiment.

    Raises:
        SammiError: the folder belongs to another experiment (the first difference is named).
    """
    file, values = workdir / "config.json", resolved(config)
    if exists(file):
        difference = _difference(read_json(file), values)
        if difference:
            raise SammiError(f"{workdir}: holds another experiment ({difference}); use another one")
    write_json(file, values)


def read_run_config(workdir: AnyPath) -> TrainConfig:
    """The experiment that a work folder holds, from its ``config.json``.

    Raises:
        SammiError: the file is missing, or is not what `save_config` wrote.
    """
    values = read_json(workdir / "config.json")
    kinds = {task.kind: task for task in (CaptionConfig, PromptConfig, SegmentConfig)}
    kind = values.pop("kind", None)
    task = kinds.get(kind) if isinstance(kind, str) else None
    if task is None:
        raise SammiError(f"{workdir / 'config.json'}: not the configuration of a training run")
    try:
        return from_dict(TrainConfig, values | {"task": from_dict(task, values.get("task"))})
    except SammiError as error:
        raise SammiError(f"{workdir / 'config.json'}: {error}") from error


def _difference(old: Any, new: Any, where: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            path = f"{where}.{name}" if where else name
            if path in _MAY_CHANGE:
                continue
            if found := _difference(old.get(name), new.get(name), path):
                return found
        return None
    return None if old == new else f"{where} was {old!r} and is {new!r}"
