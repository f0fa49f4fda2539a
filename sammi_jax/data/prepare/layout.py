"""The file layout of a set as its owner ships it: folders, splits, counts, label format."""

from dataclasses import dataclass
from pathlib import Path

from sammi_jax.data.prepare.pairs import Pair, Templates, find_pairs
from sammi_jax.data.prepare.split_lists import Ids
from sammi_jax.errors import SammiError


@dataclass(frozen=True)
class Split:
    """One split of a set.

    Attributes:
        name: as in the owner's paths and in those of the prepared set.
        counts: possible numbers of prepared examples; the first is the one in papers.
        ids: which images belong to it; None: all in its folder.
    """

    name: str
    counts: tuple[int, ...]
    ids: Ids | None = None


@dataclass(frozen=True)
class Layout:
    """One set as its owner ships it.

    Attributes:
        root: folder that the owner's archive creates; the source may be it or its parent.
        image: templates of image files, see `sammi_jax.data.prepare.pairs`.
        label: templates of label files.
        splits: the split that papers evaluate comes first.
        kind: how label files are read: a key of `sammi_jax.data.prepare.labels.READERS`.
        channel: PAXRay's index into the stack of masks.
        tile: side of the squares that images are cut into; None: they are not cut.
        short_side: larger images are resized to it.
        drop_ignored: leave out images whose whole label is ignored.
        sentinel: the image is a TIFF with the 13 bands of Sentinel-2.
        cut_short: the owner's archive holds JPEG files that end early.
    """

    root: str
    image: tuple[str, ...]
    label: tuple[str, ...]
    splits: tuple[Split, ...]
    kind: str = "index"
    channel: int = 0
    tile: int | None = None
    short_side: int | None = None
    drop_ignored: bool = False
    sentinel: bool = False
    cut_short: bool = False

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            SammiError: there is none.
        """
        for split in self.splits:
            if split.name == name:
                return split
        known = ", ".join(split.name for split in self.splits)
        raise SammiError(f"no split {name!r} in {self.root}; there are: {known}")

    def source(self, folder: Path) -> Path:
        """The folder itself, or ``root`` inside it.

        Raises:
            SammiError: there is no such folder.
        """
        if not folder.is_dir():
            raise SammiError(f"{folder}: no such folder; --source names the owner's files")
        return folder / self.root if (folder / self.root).is_dir() else folder

    def pairs(self, folder: Path, split: Split) -> tuple[list[Pair], list[str]]:
        """`find_pairs` of one split."""
        templates = Templates(self.image, self.label, split.name, split.ids)
        return find_pairs(self.source(folder), templates)
