"""Class names of the known data sets: one JSON file each in ``vocabularies/``.

A file holds what defines the set apart from its images: names, how raw label values become train
ids, which value is ignored, colors, owner and licence. NOTICE credits the origins.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from sammi_jax.errors import SammiError

_FOLDER = files("sammi_jax.data") / "vocabularies"


@dataclass(frozen=True)
class Vocabulary:
    """One file of ``vocabularies/``.

    Attributes:
        name: as users write it.
        title: the owner's name of the set.
        column: its name in the tables of papers.
        domain: of MESS; None for the other sets.
        home: where it is obtained.
        licence: what the owner says, in short; not advice.
        classes: texts, synonyms separated by ``", "``.
        merge: the evaluated class of each text.
        ignore_index: train id of pixels that do not count.
        background: the class that means "none of the others", if there is one.
        classes_of_interest: classes over which MESS averages separately; all where it names none.
        random_miou: percent that MESS publishes for a random guess; for PAXRay the mean of its four
            sets.
        palette: RGB of each evaluated class.
        train_id_by_value: train id of each raw label value; empty for color-coded labels.
        rgb_by_class: raw color of each class; empty for labels of values.
        other_values: train id of values that ``train_id_by_value`` lacks; None: they are errors.
        official_names: the owner's names where the benchmark changed them.
        label_format: the raw labels in words.
        source: where these facts were taken from.
    """

    name: str
    title: str
    column: str
    domain: str | None
    home: str
    licence: str
    classes: tuple[str, ...]
    merge: tuple[int, ...]
    ignore_index: int
    background: int | None
    classes_of_interest: tuple[int, ...]
    random_miou: float | None
    palette: tuple[tuple[int, int, int], ...]
    train_id_by_value: dict[int, int]
    rgb_by_class: tuple[tuple[int, int, int], ...]
    other_values: int | None
    official_names: tuple[str, ...]
    label_format: str
    source: str

    @property
    def num_classes(self) -> int:
        """How many classes are evaluated."""
        return max(self.merge) + 1

    @property
    def label_dtype(self) -> type[np.uint8] | type[np.uint16]:
        """The type of stored labels: train ids and `ignore_index` fit 8 or 16 bits."""
        largest = max(self.ignore_index, self.num_classes - 1)
        return np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16

    @property
    def texts(self) -> tuple[str, ...]:
        """The first synonym of each name as it stands, which is what CAT-Seg gives its model."""
        return tuple(name.split(", ")[0] for name in self.classes)

    @property
    def class_titles(self) -> tuple[str, ...]:
        """A name for each evaluated class; ``background`` where several texts share it."""
        first = {
            index: text for text, index in zip(self.texts[::-1], self.merge[::-1], strict=True)
        }
        shared = {index for index in first if self.merge.count(index) > 1}
        return tuple("background" if i in shared else first[i] for i in range(self.num_classes))

    @property
    def sha256(self) -> str:
        """`vocabulary_hash` of the texts and their classes."""
        return vocabulary_hash(self.texts, self.merge)


def vocabulary_hash(class_names: Sequence[str], merge: Sequence[int]) -> str:
    """sha256 of the texts given to a model and of the evaluated class of each text."""
    text = json.dumps([list(class_names), list(merge)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def vocabulary_names() -> tuple[str, ...]:
    """The known sets: the standard ones first, then those of MESS."""
    names = [file.name.removesuffix(".json") for file in _FOLDER.iterdir() if ".json" in file.name]
    return tuple(sorted(names, key=lambda name: (name.startswith("mess_"), name)))


def tasks_of(name: str) -> tuple[str, ...]:
    """The sets whose results are averaged to one number: the four of PAXRay, else ``name``."""
    column = get_vocabulary(name).column
    return tuple(other for other in vocabulary_names() if get_vocabulary(other).column == column)


@cache
def get_vocabulary(name: str) -> Vocabulary:
    """The vocabulary of a known set.

    Raises:
        SammiError: there is none of that name.
    """
    if name not in vocabulary_names():
        raise SammiError(f"{name}: no such data set; 'sammi datasets list' shows all")
    found = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return _from_json(found)


def _from_json(found: dict[str, Any]) -> Vocabulary:
    classes = tuple(found["classes"])
    merge = tuple(found.get("prediction_merge", range(len(classes))))
    return Vocabulary(
        name=found["name"],
        title=found["title"],
        column=found["column"],
        domain=found.get("domain"),
        home=found["home"],
        licence=found["licence"],
        classes=classes,
        merge=merge,
        ignore_index=found["ignore_index"],
        background=found.get("background_class"),
        classes_of_interest=tuple(found.get("classes_of_interest", range(max(merge) + 1))),
        random_miou=found.get("random_miou"),
        palette=tuple((red, green, blue) for red, green, blue in found["palette"]),
        train_id_by_value={int(k): v for k, v in found.get("train_id_by_value", {}).items()},
        rgb_by_class=tuple((r, g, b) for r, g, b in found.get("rgb_by_class", ())),
        other_values=found.get("other_values"),
        official_names=tuple(found.get("official_names", ())),
        label_format=found["label_format"],
        source=found["source"],
    )
