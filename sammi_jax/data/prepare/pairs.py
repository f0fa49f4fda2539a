"""Images and their label files in a source folder, found by path templates.

A template is a path under the source with placeholders: ``{id}`` matches any text, slashes
included, ``{seq}`` one folder's name, and ``*`` any text within one name. An image and a label
belong together if their placeholders agree. ``{split}`` is the owner's name of the split.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sammi_jax.errors import SammiError, one_line
from sammi_jax.files import walk_files

Key = tuple[str, ...]
Index = Mapping[Key, tuple[Path, ...]]


@dataclass(frozen=True)
class Pair:
    """One image and what its label is made of.

    Attributes:
        key: unique within the split; names the example.
        image: its file.
        labels: the label's file, or one per person (MHP), or an index file (PAXRay, PC-59).
    """

    key: str
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Templates:
    """Path templates of one split.

    Attributes:
        image: alternatives; the first that matches any file is used.
        label: likewise. One without a placeholder is the index file of all images.
        split: what ``{split}`` stands for.
        ids: reads from the source folder which ``{id}`` belong to the split; None: all that exist.
    """

    image: tuple[str, ...]
    label: tuple[str, ...]
    split: str
    ids: Callable[[Path], Sequence[str]] | None = None


def find_pairs(source: Path, templates: Templates) -> tuple[list[Pair], list[str]]:
    """Every complete pair, ordered by key, and a line about each file without its partner.

    Raises:
        SammiError: a template matches nothing, or the list of ids cannot be read.
    """
    images = _index(source, templates.image, templates.split)
    labels = _index(source, templates.label, templates.split)
    shared = labels.get(())
    if templates.ids is not None:
        keys = {(name,) for name in _read_ids(templates.ids, source)}
    else:
        keys = set(images) | (set() if shared else set(labels))
    pairs, lacking = [], []
    for key in sorted(keys):
        name = "_".join(key).replace("/", "_")
        label = shared or labels.get(key)
        if key in images and label:
            pairs.append(Pair(name, images[key][0], label))
        else:
            lacking.append(f"{'/'.join(key)} has no {'label' if key in images else 'image'}")
    return pairs, lacking


def _read_ids(ids: Callable[[Path], Sequence[str]], source: Path) -> Sequence[str]:
    try:
        return ids(source)
    except FileNotFoundError as error:
        raise SammiError(
            f"{error.filename}: missing; it lists the images of the split, copy it from the "
            "owner's archive"
        ) from error
    except Exception as error:  # whatever the damaged part happened to give
        raise SammiError(
            f"{source}: the file that lists the images of the split is damaged "
            f"({one_line(error)}); copy it again"
        ) from error


def _index(source: Path, alternatives: tuple[str, ...], split: str) -> Index:
    """The files that match the first alternative that matches any."""
    for template in alternatives:
        found = _matches(source, template.replace("{split}", split))
        if found:
            return found
    expected = " or ".join(template.replace("{split}", split) for template in alternatives)
    raise SammiError(
        f"{source}: has no file {expected}; give the folder that the owner's archives create"
    )


def _matches(source: Path, template: str) -> Index:
    if "{" not in template:
        return {(): (source / template,)} if (source / template).is_file() else {}
    folder = re.split(r"[{*]", template)[0].rpartition("/")[0]
    pattern = re.compile(_regular_expression(template))
    found: dict[Key, tuple[Path, ...]] = {}
    for path in walk_files(source / folder):
        match = pattern.fullmatch(path.relative_to(source).as_posix())
        if match:
            key = match.groups()
            found[key] = (*found.get(key, ()), path)
    return found


def _regular_expression(template: str) -> str:
    text = re.escape(template).replace(r"\{id\}", "(?P<id>.+?)")
    return text.replace(r"\{seq\}", "(?P<seq>[^/]+?)").replace(r"\*", "[^/]*")
