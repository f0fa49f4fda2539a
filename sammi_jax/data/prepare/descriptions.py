"""What the descriptions beside the records of a prepared set say, as far as TFDS acts on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sammi_jax.errors import SammiError, reading
from sammi_jax.files import read_json

# What the features of `records` are made of, as features.json names it.
_FEATURES = "tensorflow_datasets.core.features."
_FEATURE_CLASSES = {
    f"{_FEATURES}features_dict.FeaturesDict",
    f"{_FEATURES}image_feature.Image",
    f"{_FEATURES}text_feature.Text",
}
_CLASS_KEYS = ("pythonClassName", "python_class_name")  # protobuf reads both
_OTHER_KEYS = ("type", "jsonFeature", "json_feature")  # ways of older versions to name a class


def check_features(folder: Path) -> None:
    """Check that the features are those of a prepared set.

    TFDS imports, and so runs, whatever module the description of a feature names.

    Args:
        folder: of a prepared set.

    Raises:
        SammiError: a description is damaged, or names another feature.
    """
    for name in ("features.json", "dataset_info.json"):
        _check_features(folder / name)


def _check_features(file: Path) -> None:
    parts: list[Any] = [read_json(file)]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, Mapping):
            parts += part.values()
            for key, value in part.items():
                named = key in _CLASS_KEYS and str(value) not in _FEATURE_CLASSES
                if named or key in _OTHER_KEYS:
                    raise SammiError(
                        f"{file}: {key} {value}: no feature of a prepared set; prepare it again"
                    )


def split_lengths(folder: Path) -> dict[str, int]:
    """How many examples each split of a prepared set holds, by the description that TFDS reads.

    Raises:
        SammiError: its description is damaged.
    """
    file, mend = folder / "dataset_info.json", "prepare the set again"
    with reading(file, mend):
        found = {
            str(split["name"]): sum(map(int, split["shardLengths"]))
            for split in read_json(file)["splits"]
        }
    if not found:
        raise SammiError(f"{file}: names no split; {mend}")
    return found
