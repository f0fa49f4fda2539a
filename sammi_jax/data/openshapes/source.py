"""OpenShapes as a random-access source, like the other data sets of this package."""

import operator
from collections.abc import Iterable
from typing import Literal, SupportsIndex

import numpy as np

from sammi_jax.data.openshapes.drawing import Scene
from sammi_jax.data.openshapes.scenes import SCENE_SIZE, scene
from sammi_jax.data.openshapes.vocabulary import View, get_view
from sammi_jax.errors import SammiError
from sammi_jax.typing import Bool, NpArray

NUM_EXAMPLES = {
    "train": 100_000,
    "val_seen": 400,  # for choices
    "val_unseen": 400,
    "test_seen": 400,  # for reports
    "test_unseen": 400,
}


class OpenShapes:
    """``source[i] -> {"image": uint8 [h, w, 3], "label": uint8 [h, w], "file_name": str}``.

    Nothing is stored: an example is generated when it is read. Labels are classes of ``view``
    (a name, or a ``View`` such as ``get_view("os48").only_seen()``); 255 is ignored. Scenes of any
    index exist, so ``num_examples`` may be as large as a run is long.

    Raises:
        SammiError: an unknown split or view.
    """

    def __init__(
        self,
        split: str = "train",
        view: str | View = "os48",
        *,
        seed: int = 0,
        size: int = SCENE_SIZE,
        num_examples: int | None = None,
    ):
        if split not in NUM_EXAMPLES:
            splits = ", ".join(NUM_EXAMPLES)
            raise SammiError(f"openshapes: no split {split!r}; there are {splits}")
        self.split, self.seed, self.size = split, seed, size
        self.view = get_view(view) if isinstance(view, str) else view
        self._length = NUM_EXAMPLES[split] if num_examples is None else num_examples

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, NpArray | str]:
        """The example of that index; IndexError beyond the end."""
        index = operator.index(index)
        if not 0 <= index < self._length:
            raise IndexError(f"openshapes {self.split}: index {index} of {self._length}")
        drawn = self._scene(index)
        return {
            "image": drawn.image,
            "label": self.view.labels(drawn.classes),
            "file_name": f"openshapes_{self.split}_{self.seed}_{index:08d}.png",
        }

    def _scene(self, index: SupportsIndex) -> Scene:
        return scene(self.split, operator.index(index), seed=self.seed, size=self.size)

    def regions(self, index: int, kind: Literal["true", "parts"]) -> Bool[NpArray, "n h w"]:
        """The visible instances of a scene, or their connected parts, as masks."""
        drawn = self._scene(index)
        if kind == "true":
            return drawn.instances == np.unique(drawn.instances)[:, None, None]
        return drawn.parts == np.arange(1, drawn.parts.max() + 1)[:, None, None]


def batch(
    split: str,
    indices: Iterable[int],
    *,
    view: str | View = "os48",
    seed: int = 0,
    size: int = SCENE_SIZE,
) -> dict[str, NpArray]:
    """Stacked scenes: image uint8 [B, h, w, 3], label uint8 and instances int16 [B, h, w]."""
    chosen = get_view(view) if isinstance(view, str) else view
    scenes = [scene(split, int(i), seed=seed, size=size) for i in indices]
    return {
        "image": np.stack([s.image for s in scenes]),
        "label": chosen.labels(np.stack([s.classes for s in scenes])),
        "instances": np.stack([s.instances for s in scenes]),
    }
