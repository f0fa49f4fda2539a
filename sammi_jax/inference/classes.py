"""The classes that an image is segmented into: names, the texts that ask for them, a background."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.text.vocabulary import check_class_names, split_synonyms
from sammi_jax.typing import Int, Integer, NpArray

BACKGROUND = "background"  # the name of a background that has none


@dataclass(frozen=True)
class ClassList:
    """Names of the classes, and how pixels come to them.

    Attributes:
        names: of the classes; a label is an index into them.
        texts: what the model is asked for; a class may have several (synonyms).
        merge: the class of each text.
        background: the class of pixels whose best score is below ``threshold``, if any.
        threshold: in (0, 1), where there is such a class.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    merge: tuple[int, ...]
    background: int | None = None
    threshold: float | None = None

    def classes_of(self, texts: Integer[NpArray, "h w"], scores: NpArray) -> Int[NpArray, "h w"]:
        """The class of each pixel (int32), from its best text and that text's score."""
        classes = np.array(self.merge, np.int32)[texts]
        if self.threshold is not None and self.background is not None:
            classes[scores < self.threshold] = self.background
        return classes

    def class_scores(self, scores: NpArray) -> NpArray:
        """float32 ``[T, ...]``: the best of each class's texts, from those of all texts.

        A background by threshold has that score everywhere, where it has no text.
        """
        merged = np.full((len(self.names), *scores.shape[1:]), -np.inf, np.float32)
        for index, score in zip(self.merge, scores, strict=True):
            np.maximum(merged[index], score, out=merged[index])
        if self.background is not None and self.threshold is not None:
            np.maximum(merged[self.background], self.threshold, out=merged[self.background])
        return merged


def make_class_list(
    class_names: Any, background: str | None = None, threshold: float | None = None
) -> ClassList:
    """Check class names and the background.

    Args:
        class_names: one name a class, or one text with commas between them; ``"sofa; couch"`` are
            synonyms, each of which the model is asked for.
        background: name of the class for what is none of the others. Without ``threshold`` it is
            asked for by its name, as another class; with it, it takes the pixels whose best score
            is lower.
        threshold: in (0, 1); without a ``background`` the class is called "background".

    Raises:
        SammiError: an empty or duplicated class list, names that are no strings, a threshold out of
            range, or no class beside the background.
    """
    names, texts, merge = split_synonyms(check_class_names(class_names))
    if threshold is not None:
        if not 0 < threshold < 1:
            raise SammiError(f"background threshold {threshold}: give a number between 0 and 1")
        background = background or BACKGROUND
    index = None
    if background is not None:
        if background not in names:
            names = [*names, background]
            if threshold is None:
                texts, merge = [*texts, background], [*merge, len(names) - 1]
        index = names.index(background)
        if len(names) == 1:
            raise SammiError(f"{background} is the only class: name what else is to be found")
    return ClassList(
        tuple(names),
        tuple(texts),
        tuple(merge),
        index if threshold is not None else None,
        threshold,
    )
