"""Models on the Hugging Face Hub: the names of repositories, and downloads into its cache.

The cache, the token and the address are those of `huggingface_hub` (``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT``). A file gets its name in the cache only when it is complete, and weights are
downloaded last: where they are, all that belongs to them is there, too.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sammi_jax.errors import SammiError, one_line
from sammi_jax.files import read_json
from sammi_jax.object_store import PathLike

# Each of these in a folder means that it has a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
_TOKENIZER_PARTS = (*TOKENIZER_FILES, "merges.txt")  # which goes with vocab.json
# All but the weights, of a model folder and of what others write.
_SMALL_FILES = ("config.json", "open_clip_config.json", "README.md", *_TOKENIZER_PARTS)
_SHARDS = ".index.json"  # ends the name of a file that lists the parts of the weights

_REPOSITORY = r"(?P<repository>\w[\w.-]*/\w[\w.-]*)"
_NAME = re.compile(rf"{_REPOSITORY}(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json", ".txt", ".gz")


@dataclass(frozen=True)
class HubModel:
    """A repository and, where one was asked for, its revision: a branch, tag or commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def hub_model(path: PathLike) -> HubModel | None:
    """The model on the Hub that ``path`` names; None: it is a path of this machine.

    ``ORG/NAME`` is looked up on the Hub only where neither it nor ``ORG`` exists here, so that a
    mistyped ``runs/modle`` downloads nothing. ``ORG/NAME@REVISION`` always is, unless it exists.

    Example:
        >>> hub_model("facebook/sam-vit-base@main")
        HubModel(repository='facebook/sam-vit-base', revision='main')
        >>> hub_model("sam_vit_b_01ec64.pth") is None
        True
    """
    text = Path(path).as_posix()
    named = _NAME.fullmatch(text)
    if named is None or Path(text).exists():
        return None
    if named["revision"] is None:
        organization = Path(text).parent
        if organization.exists() or Path(text).suffix in _FILE_SUFFIXES:
            return None
    return HubModel(named["repository"], named["revision"])


def check_repository(name: str) -> str:
    """The name itself.

    Raises:
        SammiError: it is not of the form ORG/NAME.
    """
    if re.fullmatch(_REPOSITORY, name, re.ASCII) is None:
        raise SammiError(f"{name}: not the name of a repository; give ORG/NAME")
    return name


def hub_hint(path: PathLike) -> str:
    """The end of an error about a path that is not here and might have meant the Hub."""
    named = _NAME.fullmatch(Path(path).as_posix())
    if named is None or Path(path).suffix in _FILE_SUFFIXES:
        return ""
    return f"; for a model on the Hugging Face Hub write {named['repository']}@main"


@cache
def fetch_model(model: HubModel) -> Path:
    """The folder in the cache with a model's small files and, if it is one of ours, its weights.

    What is in the cache is used where the Hub cannot be reached.

    Raises:
        SammiError: there is no such model or revision, it is not open to this user, or it is
            neither reachable nor in the cache.
    """
    folder = _fetch_small(model, _SMALL_FILES)
    if is_ours(folder):
        fetch_weights(model, folder, ("model.safetensors",))
    return folder


@cache
def fetch_tokenizer(model: HubModel) -> Path:
    """The folder in the cache with a model's tokenizer files.

    Raises:
        SammiError: as `fetch_model`, or it has no tokenizer.
    """
    folder = _fetch_small(model, _TOKENIZER_PARTS)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise SammiError(f"{model}: has no tokenizer, none of {', '.join(TOKENIZER_FILES)}")
    return folder


def is_ours(folder: Path) -> bool:
    """Whether the config.json of a folder is that of a model folder."""
    config = folder / "config.json"
    return config.is_file() and "kind" in read_json(config)


def fetch_weights(model: HubModel, folder: Path, names: Sequence[str]) -> None:
    """Download the first of the named files that a model has into its folder of the cache.

    Args:
        model: on the Hub.
        folder: of `fetch_model`.
        names: weights files, the best one first; of an index the files that it lists as well.

    Raises:
        SammiError: the model has none of them, or as `fetch_model`.
    """
    from huggingface_hub import hf_hub_download

    if (folder / names[0]).is_file():
        return
    there = _list_files(model, folder, names)
    chosen = next((name for name in names if name in there), None)
    if chosen is None:
        raise SammiError(f"{model}: has no weights, none of {', '.join(names)}")
    with _hub_errors(model):
        fetch = lambda name: hf_hub_download(model.repository, name, revision=folder.name)  # noqa: E731
        path = Path(fetch(chosen))
        if chosen.endswith(_SHARDS):
            for part in sorted(set(read_json(path).get("weight_map", {}).values())):
                fetch(part)


def _fetch_small(model: HubModel, names: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(model):
        return Path(
            snapshot_download(model.repository, revision=model.revision, allow_patterns=list(names))
        )


def _list_files(model: HubModel, folder: Path, names: Sequence[str]) -> set[str]:
    """The files of a model; those in the cache where the Hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        with _hub_errors(model):
            info = HfApi().model_info(model.repository, revision=folder.name)
            return {file.rfilename for file in info.siblings or []}
    except SammiError:
        cached = {name for name in names if (folder / name).is_file()}
        if cached:
            return cached
        raise


@contextmanager
def _hub_errors(model: HubModel) -> Iterator[None]:
    """Errors while reading, as one line with the remedy."""
    try:
        yield
    except SammiError:
        raise
    except Exception as error:  # of its own, of its HTTP library and of the file system
        raise SammiError(f"{model}: {_reading_failed(model, error)}") from error


def _reading_failed(model: HubModel, error: BaseException) -> str:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"gated: accept its terms at {constants.ENDPOINT}/{model.repository}, then log in "
            "('hf auth login') or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "no such folder here, and no such model on the Hugging Face Hub; check the name, and "
            "for a private model log in ('hf auth login') or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {model.revision}; name a branch, tag or commit of it"
    status = http_status(error)
    if status in (401, 403):
        return f"access is denied ({status}); log in ('hf auth login') or set HF_TOKEN"
    if constants.HF_HUB_OFFLINE:
        return (
            "no such folder here, and not complete in the cache of the Hugging Face Hub; unset "
            "HF_HUB_OFFLINE to download it"
        )
    if isinstance(error, OSError) and error.filename is not None:  # disk full, not writable
        return f"cannot be stored in {error.filename}: {error.strerror}"
    what = f"answered with error {status}" if status else f"is not reachable ({cause_of(error)})"
    return f"no such folder here, and {constants.ENDPOINT} {what}; try again later"


def http_status(error: BaseException | None) -> int | None:
    """The status that a server answered with, of an error or of what caused it; None: no answer."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return status
        error = error.__cause__
    return None


def cause_of(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)
