"""From a checkpoint to a model folder: read it, recognize it, convert it by a table, write it."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from sammi_jax.config.model import ClipConfig, SamConfig, SegmenterConfig, check_config
from sammi_jax.convert import catseg, clip, sam
from sammi_jax.convert.families import family_of, relative_of
from sammi_jax.convert.rules import apply_rules
from sammi_jax.convert.sammi import assemble
from sammi_jax.convert.torch_file import find_source, open_clip_description, read_tensors
from sammi_jax.errors import SammiError
from sammi_jax.files import check_destination, local_copy
from sammi_jax.object_store import AnyPath, PathLike, absolute, as_path
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.hub import TOKENIZER_FILES, fetch_tokenizer, hub_model
from sammi_jax.weights.kinds import KINDS, Kind, ModelConfig, expected_params
from sammi_jax.weights.model_folder import (
    DTYPES,
    is_model_folder,
    read_meta,
    read_model,
    write_model,
)
from sammi_jax.weights.provenance import UNKNOWN, Origin, made_of, read_origin
from sammi_jax.weights.published import recognize

_RULES = {"clip": clip.rules_for, "sam": sam.rules_for, "catseg": catseg.rules_for}

# Files with weights do not say their license; this is what the authors of the released ones say.
_LICENSES = {
    "clip": f"{UNKNOWN}: MIT if from OpenAI",
    "sam": f"{UNKNOWN}: Apache-2.0 if from Meta",
    "catseg": f"{UNKNOWN}: MIT if from CAT-Seg's authors",
}


# Model cards write licenses in small letters.
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT"}


@dataclass(frozen=True)
class Converted:
    """A checkpoint as our configuration and parameters.

    Attributes:
        kind: of model.
        config: its configuration.
        params: every parameter by path, float32.
        origin: for the model folder's record.
    """

    kind: Kind
    config: ModelConfig
    params: Mapping[str, np.ndarray]
    origin: Origin


def convert(
    kind: Kind,
    source: PathLike,
    destination: PathLike,
    *,
    clip: PathLike | None = None,
    sam: PathLike | None = None,
    tokenizer: PathLike | None = None,
    templates: Sequence[str] | None = None,
    dtype: str = "float32",
    clip_fields: Mapping[str, Any] | None = None,
) -> AnyPath:
    """Make a model folder from a checkpoint and return its path.

    Args:
        kind: "clip", "sam", "catseg" or "sammi".
        source: a checkpoint file or folder of that kind, for "sammi" of a CLIP or a CAT-Seg; or a
            model folder of it (to add a tokenizer, to change the dtype). Either may lie on the
            Hugging Face Hub: ``ORG/NAME`` or ``ORG/NAME@REVISION``, here and for ``sam``, ``clip``
            and ``tokenizer``.
        destination: the model folder; it must not exist, or be empty.
        clip: a folder with CLIP's tokenizer files; default: that of ``source``.
        sam: a SAM checkpoint or model folder; "sammi" needs it, unless ``source`` is a whole
            SAM-MI.
        tokenizer: a tokenizer file, or a folder with one; it comes before all other places.
        templates: for "catseg" and "sammi": the prompt templates of a class, in the order of the
            cost map's channels; None: what the checkpoint's description says, or CAT-Seg's own.
        dtype: of the stored parameters, "float32", "bfloat16" or "float16".
        clip_fields: what the shapes of a CLIP do not say: any of ``activation``,
            ``vision_heads``, ``text_heads`` and ``eps``; they come before what a file says.

    Raises:
        SammiError: one of the arguments cannot be used. Nothing is written then.
    """
    if kind not in KINDS:
        raise SammiError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    if dtype not in DTYPES:
        raise SammiError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    destination = check_destination(destination)  # before anything is downloaded
    is_whole = kind == "sammi" and is_model_folder(source) and read_meta(source)["kind"] == "sammi"
    if kind == "sammi" and (sam is None) != is_whole:
        raise SammiError(
            f"{source}: a SAM-MI has its SAM: leave sam out"
            if is_whole
            else "SAM-MI needs a SAM as well: give sam (a checkpoint or a model folder)"
        )
    if templates is not None and kind not in ("catseg", "sammi"):
        raise SammiError(f"prompt templates go with catseg and sammi, not with {kind}")
    initialized: list[str] = []
    if kind == "sammi" and not is_whole:
        model, initialized = _put_together(source, cast(PathLike, sam), templates, clip_fields)
    else:
        model = read_source(source, (kind,), templates, clip_fields)
        if is_model_folder(source):
            initialized = read_meta(source).get("initialized", [])
    words = None if kind == "sam" else _find_tokenizer(model.config, source, clip, tokenizer)
    return write_model(
        destination,
        kind,
        model.config,
        model.params,
        source=model.origin.source,
        licence=model.origin.license,
        tokenizer=words,
        dtype=dtype,
        initialized=initialized,
    )


def read_source(
    path: PathLike,
    kinds: Sequence[Kind],
    templates: Sequence[str] | None = None,
    clip_fields: Mapping[str, Any] | None = None,
) -> Converted:
    """A checkpoint or model folder of one of ``kinds``, as our parameters.

    Args:
        path: of the checkpoint or folder, or its name on the Hugging Face Hub.
        kinds: the kinds to accept.
        templates: prompt templates that replace a segmenter's.
        clip_fields: of a CLIP, as for `convert`.

    Raises:
        SammiError: the checkpoint is unreadable, of another kind, has other tensors than its table
            lists, or was trained with another number of templates; or the Hub does not give it.
    """
    hub, path = hub_model(path), find_source(path)
    name = str(hub or path)
    if is_model_folder(path):
        if clip_fields:
            raise SammiError(f"{name}: a model folder says its {', '.join(clip_fields)} itself")
        found = read_model(path, kinds)
        config = _with_templates(name, found.config, templates)
        return Converted(found.kind, config, found.params, read_origin(found.meta))
    checkpoint = read_tensors(path)
    record = {"file": path.name} if hub is None else {"hub": hub.repository, "commit": path.name}
    published = recognize(path.name, checkpoint.sha256, hub and hub.repository)
    kind = _kind_of(name, checkpoint.tensors, kinds)
    config_json, overrides = checkpoint.config_json, None
    if kind == "clip" and config_json is None and not clip.is_openai(checkpoint.tensors):
        config_json = open_clip_description(path)
    if templates is not None and kind == "catseg":
        overrides = {"templates": tuple(templates)}
    if clip_fields:
        if kind != "clip":
            raise SammiError(f"{name}: {', '.join(clip_fields)} go with a CLIP; this is a {kind}")
        overrides = clip_fields
    try:
        source = _RULES[kind](checkpoint.tensors, config_json=config_json, overrides=overrides)
        expected = expected_params(source.config)
        params = apply_rules(checkpoint.tensors, source.rules, expected, source.ignored)
    except SammiError as error:
        raise SammiError(f"{name}: {error}") from error
    record |= {"sha256": checkpoint.sha256, "key_names": source.key_names}
    if published is None:
        license = card_license(path) or _LICENSES[kind]
    else:
        record["published"] = published.title
        license = published.license
    return Converted(kind, source.config, params, Origin(kind, record, license))


def card_license(checkpoint: Path) -> str | None:
    """The license that a Hugging Face folder's model card (README.md) names in its front matter."""
    card = checkpoint / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front = text[4:].partition("\n---")[0] if text.startswith("---\n") else ""
    named = re.search(r"^license: *(\S+) *$", front, re.MULTILINE)
    if named is None:
        return None
    return _SPDX.get(named[1], named[1])


def _with_templates(name: str, config: ModelConfig, templates: Sequence[str] | None) -> ModelConfig:
    if templates is None or not isinstance(config, SegmenterConfig):
        return config
    config = replace(config, templates=tuple(templates))
    try:
        check_config(config)
    except SammiError as error:
        raise SammiError(f"{name}: {error}") from error
    return config


def _kind_of(name: str, keys: Mapping[str, Any], kinds: Sequence[Kind]) -> Kind:
    other = relative_of(keys)
    if other is not None:
        raise SammiError(f"{name}: is a {other} checkpoint, another model; give Meta's SAM")
    family = family_of(keys)
    if family is None:
        if len(kinds) == 1:
            return kinds[0]  # the error about its table names the missing keys
        few = ", ".join(list(keys)[:3])
        raise SammiError(f"{name}: looks like none of {', '.join(kinds)} (it holds {few}, ...)")
    if family.kind not in kinds:
        mend = (
            "give it as --sam, and a CLIP or CAT-Seg as SRC"
            if "clip" in kinds and len(kinds) > 1
            else f"use: sammi convert {family.kind} SRC DST"
        )
        raise SammiError(f"{name}: looks like a {family.title} checkpoint; {mend}")
    return cast(Kind, family.kind)


def _put_together(
    source: PathLike,
    sam: PathLike,
    templates: Sequence[str] | None,
    clip_fields: Mapping[str, Any] | None,
) -> tuple[Converted, list[str]]:
    base = read_source(source, ("clip", "catseg"), templates, clip_fields)
    masks = read_source(sam, ("sam",))
    config, params, initialized = assemble(
        cast(ClipConfig | SegmenterConfig, base.config),
        base.params,
        cast(SamConfig, masks.config),
        masks.params,
        templates,
    )
    origin = made_of("sammi", {base.kind: base.origin, "sam": masks.origin})
    return Converted("sammi", config, params, origin), initialized


def _find_tokenizer(
    config: ModelConfig,
    source: PathLike,
    clip: PathLike | None,
    tokenizer: PathLike | None,
) -> Tokenizer | None:
    """The named tokenizer, else the one in ``clip``, else the one beside ``source``."""
    found = _read_tokenizer(source, clip, tokenizer)
    if found is None:
        warnings.warn(
            f"no tokenizer beside {source}, so the model folder cannot read text; to add one, "
            "convert with --tokenizer FILE_OR_DIR",
            stacklevel=3,
        )
        return None
    text = cast(ClipConfig, getattr(config, "clip", config)).text
    if found.vocab_size > text.vocab_size:
        raise SammiError(
            f"the tokenizer has {found.vocab_size} tokens, but the model has rows for "
            f"{text.vocab_size}: give the model's tokenizer with --tokenizer"
        )
    return found


def _read_tokenizer(
    source: PathLike, clip: PathLike | None, tokenizer: PathLike | None
) -> Tokenizer | None:
    if tokenizer is not None:
        path = _tokenizer_place(tokenizer)
        return Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_file(path)
    source = find_source(source)
    folders = [source if source.is_dir() else source.parent]
    if clip is not None:
        folders.insert(0, _tokenizer_place(clip))
        if not folders[0].is_dir():
            raise SammiError(f"{folders[0]}: no such folder; give one with CLIP's tokenizer files")
    for folder in folders:
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            return Tokenizer.from_folder(folder)
    return None


def _tokenizer_place(path: PathLike) -> Path:
    """A file or folder; of a repository on the Hugging Face Hub the tokenizer alone."""
    hub = hub_model(path)
    if hub is not None:
        return fetch_tokenizer(hub)
    return cast(Path, absolute(local_copy(as_path(path), depth=1)))
