"""The image files that a command line names, and what their results are called."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sammi_jax.errors import SammiError
from sammi_jax.files import local_copy, walk_files
from sammi_jax.object_store import AnyPath, PathLike, as_path

IMAGE_SUFFIXES = {
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        path: on this machine.
        name: of its results: a path below the output folder, without a suffix.
        place: what messages and results call it: its path, or the one in a bucket.
    """

    path: Path
    name: str
    place: AnyPath


def find_images(arguments: Sequence[PathLike]) -> list[ImageFile]:
    """Files, the images in folders (at any depth), and those that patterns such as ``*.jpg`` match.

    Images in a bucket are downloaded into a cache: a file, or a folder with all that is in it.

    Results in a folder keep its structure. Where two images would have results of one name, both
    names get their suffix: ``cat_jpg`` and ``cat_png``.

    Raises:
        SammiError: a folder or pattern without images, or images whose results would still
            overwrite each other.
    """
    places = [as_path(argument) for argument in arguments]
    arguments = [
        argument if isinstance(place, Path) else local_copy(place)
        for argument, place in zip(arguments, places, strict=True)
    ]
    folders = [Path(a) for a in arguments if Path(a).is_dir()]
    found: dict[Path, str] = {}  # an image that is named twice is segmented once
    remote: dict[Path, AnyPath] = {}
    for argument, place in zip(arguments, places, strict=True):
        path = Path(argument)
        if path.is_dir():
            top = path.resolve().name if len(folders) > 1 else ""
            names = {
                file: str(Path(top, file.relative_to(path)))
                for file in walk_files(path)
                if file.suffix.lower() in IMAGE_SUFFIXES
            }
            if not names:
                raise SammiError(
                    f"{path}: no images in this folder; it is searched for "
                    f"{', '.join(sorted(IMAGE_SUFFIXES))}"
                )
        elif glob.has_magic(str(argument)) and not path.exists():
            names = {
                Path(match): Path(match).name
                for match in sorted(glob.glob(str(argument), recursive=True))
                if Path(match).is_file()
            }
            if not names:
                raise SammiError(f"{argument}: no file matches this pattern")
        else:
            names = {path: path.name}
        found |= {file: name for file, name in names.items() if file not in found}
        if not isinstance(place, Path):
            remote |= {file: place / file.relative_to(path).as_posix() for file in names}
    return _named(found, remote)


def _named(found: dict[Path, str], remote: dict[Path, AnyPath]) -> list[ImageFile]:
    stems = {path: str(Path(name).with_suffix("")) for path, name in found.items()}
    count = Counter(stems.values())
    names = {
        path: stem if count[stem] == 1 else stem + Path(found[path]).suffix.replace(".", "_")
        for path, stem in stems.items()
    }
    seen: dict[str, Path] = {}
    for path, name in names.items():
        if name in seen:
            raise SammiError(
                f"{seen[name]} and {path} would write the same files {name}_*: segment them into "
                "different --out folders"
            )
        seen[name] = path
    return [ImageFile(path, name, remote.get(path, path)) for path, name in names.items()]
