"""User folders: ``images/``, ``labels/`` and ``classes.txt`` in one folder.

An image and its label have the same name up to the suffix. The value of a label pixel is a line
number of ``classes.txt``, counted from 0, or `ignore_value`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.errors import SammiError, listed
from sammi_jax.files import atomic_folder, check_destination, walk_files
from sammi_jax.object_store import AnyPath
from sammi_jax.text.vocabulary import read_class_file

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_LABELS = {".png", ".bmp", ".tif", ".tiff"}
_LOSSY = {".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class UserFolder:
    """What a user folder holds: pairs of files, class names, and the label of ignored pixels."""

    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    ignore_index: int


def ignore_value(num_classes: int) -> int:
    """The label of ignored pixels: 255 where the labels fit 8 bits, else 65535."""
    return 255 if num_classes <= 255 else 65535


def read_user_folder(folder: Path) -> UserFolder:
    """Find the pairs and read the class names.

    Raises:
        SammiError: a part is missing, or an image or a label lacks its partner.
    """
    for part in ("images", "labels"):
        if not (folder / part).is_dir():
            raise SammiError(
                f"{folder}: has no folder {part}; a user folder holds images/, labels/ and "
                "classes.txt"
            )
    classes = tuple(read_class_file(folder / "classes.txt"))
    images = _by_stem(folder / "images", _IMAGES)
    labels = _by_stem(folder / "labels", _LABELS)
    lossy = [path.name for path in walk_files(folder / "labels") if path.suffix.lower() in _LOSSY]
    if lossy:
        raise SammiError(
            f"{folder}/labels: {listed(lossy)}: JPEG and WebP change label values; write PNG files"
        )
    lacking = [f"{stem} has no label" for stem in sorted(set(images) - set(labels))]
    lacking += [f"{stem} has no image" for stem in sorted(set(labels) - set(images))]
    if lacking:
        raise SammiError(f"{folder}: {listed(lacking)}; give both files the same name")
    if not images:
        raise SammiError(f"{folder}/images: holds no image ({', '.join(sorted(_IMAGES))})")
    pairs = (Pair(stem.replace("/", "_"), images[stem], (labels[stem],)) for stem in sorted(images))
    return UserFolder(tuple(pairs), classes, ignore_value(len(classes)))


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in walk_files(folder):
        if path.suffix.lower() in suffixes:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise SammiError(f"{path}: {found[stem].name} has the same name; keep one of them")
            found[stem] = path
    return found


def write_user_folder(folder: AnyPath, source: Any, class_names: Sequence[str]) -> None:
    """Write examples as a user folder, atomically: images and labels as PNG.

    Args:
        folder: absent or empty.
        source: a sequence of ``{"image": uint8 [h, w, 3], "label": uint8 [h, w]}``, in whose labels
            255 is ignored.
        class_names: at most 255, in the order of the labels.

    Raises:
        SammiError: the folder holds something.
    """
    with atomic_folder(check_destination(folder), "classes.txt") as new:
        for part in ("images", "labels"):
            (new / part).mkdir()
        for index in range(len(source)):
            example, name = source[index], f"scene_{index:05d}.png"
            Image.fromarray(np.asarray(example["image"])).save(new / "images" / name)
            Image.fromarray(np.asarray(example["label"])).save(new / "labels" / name)
        (new / "classes.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
