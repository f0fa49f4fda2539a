"""Export folders: programs, weights, tokenizer, a manifest, and a script that runs them.

The folder needs nothing of this package. ``manifest.json`` says all that a program of another
maker must know: inputs and outputs, how an image and class names become inputs, platforms,
versions, license and source (docs/export.md).
"""

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from sammi_jax import __version__
from sammi_jax.config.extras import EXTRAS
from sammi_jax.config.model import SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.export.programs import PLATFORMS, TEXT_ENCODER, Program, export_programs
from sammi_jax.files import atomic_folder, check_destination, write_json
from sammi_jax.images import LONG_SIDE, SHORT_SIDE
from sammi_jax.inference.inputs import PAD_MULTIPLE
from sammi_jax.object_store import AnyPath, PathLike
from sammi_jax.ops.clip_image import CLIP_MEAN
from sammi_jax.text.tokenizer import END, START, TOKENIZER_FILE
from sammi_jax.weights.model_folder import WEIGHTS_FILE, Description, describe, load_tokenizer

FORMAT = 1
MANIFEST_FILE, SCRIPT_FILE, REQUIREMENTS_FILE = (
    "manifest.json",
    "run_exported.py",
    "requirements.txt",
)
CLASS_MULTIPLE = 8  # as in inference: lists of similar length share one compiled program

# What the script imports; flatbuffers is what `jax.export` reads its files with.
_REQUIREMENTS = ("flatbuffers", "numpy", "pillow", "safetensors", "tokenizers")
_CALL = (
    "f = jax.export.deserialize(file's bytes); f.call(weights, *inputs in this order). weights is "
    "a dictionary of every tensor of the weights file by its name, as float32; an input that is an "
    "object is a dictionary. b (images) and t (classes) are any numbers within the limits."
)


def write_export(
    model: PathLike, folder: PathLike, platforms: Sequence[str] = PLATFORMS
) -> AnyPath:
    """Export a model folder atomically and return the new folder's absolute path.

    Args:
        model: a CAT-Seg or SAM-MI model folder, or the name of a bundled model.
        folder: must not exist, or be empty.
        platforms: what the programs can run on, of `programs.KNOWN_PLATFORMS`.

    Raises:
        SammiError: the model folder is missing, damaged, of another kind or without a tokenizer;
            the destination exists; an unknown platform; or flatbuffers is not installed.
    """
    folder = check_destination(folder)
    _check_flatbuffers()
    found = describe(model, ["catseg", "sammi"])
    load_tokenizer(model, found.tokenizer_path, found.config)  # raises where there is none
    programs = export_programs(found.config, platforms)
    with atomic_folder(folder, MANIFEST_FILE) as temporary:
        files = {_file_name(program): program for program in programs}
        for name, program in files.items():
            (temporary / name).write_bytes(program.exported.serialize())
        shutil.copyfile(found.path / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
        shutil.copyfile(found.path / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
        shutil.copyfile(Path(__file__).with_name(SCRIPT_FILE), temporary / SCRIPT_FILE)
        needed = [f"jax>={jax.__version__}", *_REQUIREMENTS]
        (temporary / REQUIREMENTS_FILE).write_text("\n".join(needed) + "\n")
        write_json(temporary / MANIFEST_FILE, manifest(found, files))
    return folder


def _check_flatbuffers() -> None:
    try:
        import flatbuffers  # noqa: F401  (jax.export imports it when it writes)
    except ImportError as error:
        raise SammiError(
            f"sammi export needs the package flatbuffers: {EXTRAS['export'].command}"
        ) from error


def _file_name(program: Program) -> str:
    many = "_many_classes" if program.min_classes > 1 else ""
    return f"{program.role}{many}.jaxexport"


def manifest(found: Description, programs: Mapping[str, Program]) -> dict[str, Any]:
    """What ``manifest.json`` holds, as JSON's types.

    Args:
        found: the model folder.
        programs: the exported programs by the names of their files.
    """
    first = next(iter(programs.values())).exported
    config: SegmenterConfig = found.config
    return {
        "format": FORMAT,
        "kind": found.kind,
        "licence": found.meta.get("licence"),
        "source": found.meta.get("source"),
        "versions": {
            "sammi_jax": __version__,
            "jax": jax.__version__,
            "jaxlib": version("jaxlib"),
            "calling_convention": first.calling_convention_version,
        },
        "platforms": list(first.platforms),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "weights": WEIGHTS_FILE,
        "text": {
            "tokenizer": TOKENIZER_FILE,
            "start_token": START,
            "end_token": END,
            "context_length": config.clip.text.context_length,
            "templates": list(config.templates),
            "class_multiple": CLASS_MULTIPLE,
        },
        "image": _image(config),
        "call": _CALL,
        "programs": [
            {
                "file": name,
                "role": program.role,
                "classes": {"min": program.min_classes, "max": program.max_classes},
                "inputs": _shapes(program.inputs),
                "outputs": _shapes(
                    {"text_features": program.outputs}
                    if program.role == TEXT_ENCODER
                    else program.outputs
                ),
            }
            for name, program in programs.items()
        ],
    }


def _image(config: SegmenterConfig) -> dict[str, Any]:
    """How an image becomes the segmenter's arrays; ``run_exported.py`` follows it."""
    sliding, masks = config.sliding, config.masks
    return {
        # Antialiased bilinear resize (Pillow) before everything else; null: none.
        "short_side": SHORT_SIDE if sliding else None,
        "long_side_limit": LONG_SIDE if sliding else None,
        # Padding below and to the right to a multiple, with this RGB color of 0..255; null: none.
        "pad_multiple": None if sliding else PAD_MULTIPLE,
        "pad_color": None if sliding else [float(value) for value in CLIP_MEAN],
        # Sides of the squares that it is squashed to, bilinear without antialiasing.
        "canvas": sliding.output_size if sliding else config.clip_size,
        "overview": config.crop_size if sliding else None,
        # Side of SAM's zero-padded square; the longest side is scaled to it (Pillow's bilinear).
        "sam": masks.sam.image_size if masks else None,
    }


def _shapes(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _shapes(inner) for name, inner in value.items()}
    shape = [side if isinstance(side, int) else str(side) for side in value.shape]
    return {"shape": shape, "dtype": str(value.dtype)}
