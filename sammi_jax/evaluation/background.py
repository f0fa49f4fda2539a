"""Which texts compete for a data set's pixels, and how its background is treated."""

import dataclasses

from sammi_jax.config.experiment import EvalConfig
from sammi_jax.data.catalogue import Dataset
from sammi_jax.errors import SammiError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Texts and the evaluated class of each; labels of ``ignored_class`` do not count."""

    class_names: tuple[str, ...]
    merge: tuple[int, ...]
    background: int | None = None  # class of pixels whose best score is below the threshold
    ignored_class: int | None = None


def choose_vocabulary(dataset: Dataset, config: EvalConfig) -> Vocabulary:
    """The data set's texts under ``config.background``.

    Raises:
        SammiError: ``config.background`` asks for a background class that the data set lacks, or
            there is no other class.
    """
    if config.background == "name":
        return Vocabulary(dataset.class_names, dataset.merge)
    background = dataset.background
    if background is None or background not in dataset.merge:
        raise SammiError(
            f"{dataset.name}: has no background class, so eval.background={config.background} "
            "has nothing to act on; use eval.background=name"
        )
    kept = [
        (name, index)
        for name, index in zip(dataset.class_names, dataset.merge, strict=True)
        if index != background
    ]
    if not kept:
        raise SammiError(f"{dataset.name}: has no class but its background")
    names, merge = zip(*kept, strict=True)
    if config.background == "threshold":
        return Vocabulary(names, merge, background=background)
    return Vocabulary(names, merge, ignored_class=background)
