"""Data sets by name, with all that an evaluation needs to know about them."""

from dataclasses import dataclass
from typing import Any, Protocol

from sammi_jax.data.openshapes import IGNORE_LABEL, NUM_EXAMPLES, VIEWS, OpenShapes, get_view
from sammi_jax.errors import SammiError


class Source(Protocol):
    """Random access: ``{"image": uint8 [H, W, 3], "label": int [H, W], "file_name": str}``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Dataset:
    """One labelled set.

    Attributes:
        name: as users write it.
        source: its examples.
        class_names: the texts that a model is given.
        merge: the evaluated class of each text (several may share one).
        ignore_label: label of pixels that do not count.
        seen: evaluated classes that training may have seen; empty where the question is moot.
        unseen: the other ones.
    """

    name: str
    source: Source
    class_names: tuple[str, ...]
    merge: tuple[int, ...]
    ignore_label: int
    seen: tuple[int, ...] = ()
    unseen: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes are evaluated."""
        return max(self.merge) + 1


def dataset_names() -> list[str]:
    """Every name that `open_dataset` takes."""
    return [f"{view}/{split}" for view in VIEWS for split in NUM_EXAMPLES]


def open_dataset(name: str, num_examples: int | None = None) -> Dataset:
    """Open ``VIEW/SPLIT`` of OpenShapes, for example ``os48/val_unseen``.

    Args:
        name: of `dataset_names`.
        num_examples: use the first ones only.

    Raises:
        SammiError: there is no such data set.
    """
    view_name, _, split = name.partition("/")
    if name not in dataset_names():
        raise SammiError(f"{name}: no such data set; there are {', '.join(dataset_names())}")
    view = get_view(view_name)
    return Dataset(
        name=name,
        source=OpenShapes(split, view, num_examples=num_examples),
        class_names=view.class_names,
        merge=view.merge,
        ignore_label=IGNORE_LABEL,
        seen=view.seen,
        unseen=view.unseen,
    )
