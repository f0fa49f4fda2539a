"""A user's own labeled pictures: ``images/``, ``labels/`` and ``classes.txt`` in one folder.

An image and its label have the same name up to the suffix. A label pixel is the line of
``classes.txt``, counted from 0; `ignore_value` does not count.
"""

from dataclasses import dataclass
from pathlib import Path

from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.errors import SammiError
from sammi_jax.text.vocabulary import read_class_file

_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_LABELS = {".png", ".bmp", ".tif", ".tiff"}
_MAX_LISTED = 5


@dataclass(frozen=True)
class OwnFolder:
    """What a user's folder holds."""

    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    ignore_index: int


def ignore_value(num_classes: int) -> int:
    """255 while labels fit 8 bits, else 65535."""
    return 255 if num_classes <= 255 else 65535


def read_own_folder(folder: Path) -> OwnFolder:
    """Find the pairs and the classes.

    Raises:
        SammiError: a part is missing, or an image or a label lacks its partner.
    """
    for part in ("images", "labels"):
        if not (folder / part).is_dir():
            raise SammiError(
                f"{folder}: has no folder {part}; an own data set holds images/, labels/ and "
                "classes.txt"
            )
    classes = tuple(read_class_file(folder / "classes.txt"))
    images = _by_stem(folder / "images", _IMAGES)
    labels = _by_stem(folder / "labels", _LABELS)
    lacking = [f"{stem} has no label" for stem in sorted(set(images) - set(labels))]
    lacking += [f"{stem} has no image" for stem in sorted(set(labels) - set(images))]
    if lacking:
        more = f" and {len(lacking) - _MAX_LISTED} more" if len(lacking) > _MAX_LISTED else ""
        raise SammiError(
            f"{folder}: {', '.join(lacking[:_MAX_LISTED])}{more}; give both the same name"
        )
    if not images:
        raise SammiError(f"{folder}/images: holds no picture ({', '.join(sorted(_IMAGES))})")
    pairs = (Pair(stem.replace("/", "_"), images[stem], (labels[stem],)) for stem in sorted(images))
    return OwnFolder(tuple(pairs), classes, ignore_value(len(classes)))


def _by_stem(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise SammiError(f"{path}: {found[stem].name} has the same name; keep one of them")
            found[stem] = path
    return found
