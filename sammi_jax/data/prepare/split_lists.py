"""Which images belong to a split, where a folder alone does not tell."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sammi_jax.files import read_json

Ids = Callable[[Path], Sequence[str]]


def lines(file: str, suffix: str = "") -> Ids:
    """Ids from a text file under the source, one a line, without ``suffix``."""
    return partial(_lines, file, suffix)


def _lines(file: str, suffix: str, source: Path) -> list[str]:
    found = (source / file).read_text(encoding="utf-8").split()
    return [line.removesuffix(suffix) for line in found]


def paxray_ids(source: Path) -> list[str]:
    """The test images of PAXRay's index."""
    index = read_json(source / "paxray.json")
    return [Path(entry["image"]).stem for entry in index["test"]]


def context_ids(source: Path) -> list[str]:
    """The validation images of PASCAL-Context's index for 59 classes."""
    index = read_json(source / "trainval_merged.json")
    return [Path(image["file_name"]).stem for image in index["images"] if image["phase"] == "val"]


def cub_ids(source: Path) -> list[str]:
    """CUB's lines "NUMBER PATH" of images.txt whose flag in train_test_split.txt is 0."""
    paths = dict(line.split() for line in (source / "images.txt").read_text().splitlines())
    flags = dict(
        line.split() for line in (source / "train_test_split.txt").read_text().splitlines()
    )
    return [paths[number].removesuffix(".jpg") for number, flag in flags.items() if flag == "0"]


def chase_ids(source: Path) -> list[str]:
    """All of CHASE but the first eight, which are the training images."""
    return sorted(path.stem for path in source.glob("*.jpg"))[8:]


def _fixed(*ids: str) -> Ids:
    return lambda _: ids


POTSDAM = _fixed(
    *(f"top_potsdam_{row}_{column}" for row in (2, 3, 4, 5, 6) for column in (13, 14)),
    *(f"top_potsdam_{row}_15" for row in (4, 5, 6)),
    "top_potsdam_7_13",
)
CWFID = _fixed(
    *(f"{i:03}" for i in (1, 3, 4, 9, 10, 13, 15, 21, 22, 26, 28)),
    *(f"{i:03}" for i in (29, 30, 32, 35, 39, 44, 47, 48, 54, 60)),
)
