"""The words of OpenShapes, its 168 classes, which of them are unseen, and the label views.

A scene stores one class id a pixel: objects are ``(texture * 6 + color) * 6 + shape`` (0..143),
stuff is ``144 + pattern * 6 + color``. A view renames these ids and sets names beside them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.typing import Int, NpArray, UInt8

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PATTERNS = ("waves", "bricks", "gravel", "planks")
ANY_SHAPE = "thing"  # stands for the shape where it is not named

NUM_OBJECTS = len(TEXTURES) * len(COLORS) * len(SHAPES)
NUM_PAIRS = len(TEXTURES) * len(COLORS)
NUM_STUFF = len(PATTERNS) * len(COLORS)
IGNORE_LABEL = 255  # OpenShapes labels every pixel; only views cut to seen classes use it


def object_class(texture: int, color: int, shape: int) -> int:
    """Class id of an object."""
    return (texture * len(COLORS) + color) * len(SHAPES) + shape


def stuff_class(pattern: int, color: int) -> int:
    """Class id of a stuff region."""
    return NUM_OBJECTS + pattern * len(COLORS) + color


def _pair_unseen(texture: int, color: int) -> bool:
    """Each color loses exactly one texture, each texture one or two colors."""
    return (color + texture) % 4 == 0


def _stuff_unseen(pattern: int, color: int) -> bool:
    return color % 2 == 0 and (color + 2 * pattern) % 4 == 0


_COLOR_IDS = range(len(COLORS))
_PAIRS = [(t, c) for t in range(len(TEXTURES)) for c in _COLOR_IDS]
_STUFF = [(p, c) for p in range(len(PATTERNS)) for c in _COLOR_IDS]

# (texture, color) of objects and (pattern, color) of stuff, by whether training may show them.
SEEN_PAIRS = tuple(pair for pair in _PAIRS if not _pair_unseen(*pair))
UNSEEN_PAIRS = tuple(pair for pair in _PAIRS if _pair_unseen(*pair))
SEEN_STUFF = tuple(kind for kind in _STUFF if not _stuff_unseen(*kind))
UNSEEN_STUFF = tuple(kind for kind in _STUFF if _stuff_unseen(*kind))


@dataclass(frozen=True)
class View:
    """One vocabulary over the scenes.

    ``class_names`` are the texts a model is given. Name ``i`` is evaluated as class ``merge[i]``
    (the identity but for ``os-b``, whose background words share one class), and ``class_table[id]``
    is the class of a scene's class id. ``seen`` and ``unseen`` are disjoint class numbers.
    """

    name: str
    class_names: tuple[str, ...]
    merge: tuple[int, ...]
    class_table: tuple[int, ...]
    seen: tuple[int, ...]
    unseen: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Evaluated classes."""
        return max(self.merge) + 1

    @cached_property
    def _table(self) -> UInt8[NpArray, " ids"]:
        return np.array(self.class_table, np.uint8)

    def labels(self, classes: Int[NpArray, "*n"]) -> UInt8[NpArray, "*n"]:
        """Class numbers of the ``classes`` of one or several scenes; 255 is ignored."""
        return self._table[classes]

    def only_seen(self) -> "View":
        """The view with only its seen classes, renumbered in order: the training vocabulary.

        Raises:
            SammiError: the view merges names, so that a class has no single name.
        """
        if self.merge != tuple(range(len(self.merge))):
            raise SammiError(f"view {self.name}: names that share a class cannot be cut to seen")
        new = {old: i for i, old in enumerate(self.seen)}
        return View(
            name=f"{self.name}-seen",
            class_names=tuple(self.class_names[i] for i in self.seen),
            merge=tuple(range(len(self.seen))),
            class_table=tuple(new.get(c, IGNORE_LABEL) for c in self.class_table),
            seen=tuple(range(len(self.seen))),
            unseen=(),
        )


def _make_views() -> dict[str, View]:
    pair_names = tuple(f"{TEXTURES[t]} {COLORS[c]} {ANY_SHAPE}" for t, c in _PAIRS)
    object_names = tuple(f"{TEXTURES[t]} {COLORS[c]} {s}" for t, c in _PAIRS for s in SHAPES)
    stuff_names = tuple(f"{COLORS[c]} {PATTERNS[p]}" for p, c in _STUFF)
    unseen_ids = {object_class(*pair, s) for pair in UNSEEN_PAIRS for s in range(len(SHAPES))}
    unseen_ids |= {stuff_class(*kind) for kind in UNSEEN_STUFF}

    pairs = tuple(i // len(SHAPES) for i in range(NUM_OBJECTS))
    stuff = tuple(range(NUM_STUFF))
    background = NUM_PAIRS

    def view(name: str, names: tuple[str, ...], merge: tuple[int, ...], table: tuple) -> View:
        unseen = {table[i] for i in unseen_ids}
        if name == "os-b":
            unseen.discard(background)  # training has seen most of what is merged there
        seen = tuple(sorted(set(table) - unseen))
        return View(name, names, merge, table, seen, tuple(sorted(unseen)))

    return {
        "os48": view(
            "os48",
            pair_names + stuff_names,
            tuple(range(NUM_PAIRS + NUM_STUFF)),
            pairs + tuple(NUM_PAIRS + i for i in stuff),
        ),
        "os168": view(
            "os168",
            object_names + stuff_names,
            tuple(range(NUM_OBJECTS + NUM_STUFF)),
            tuple(range(NUM_OBJECTS + NUM_STUFF)),
        ),
        "os-b": view(
            "os-b",
            pair_names + stuff_names,
            (*range(NUM_PAIRS), *(background for _ in stuff)),
            pairs + tuple(background for _ in stuff),
        ),
    }


VIEWS = _make_views()


def get_view(name: str) -> View:
    """The view of that name.

    Raises:
        SammiError: there is none.
    """
    if name not in VIEWS:
        raise SammiError(f"openshapes: no view {name!r}; there are {', '.join(VIEWS)}")
    return VIEWS[name]
