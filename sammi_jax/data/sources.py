"""Random access to stored images and labels: prepared sets and user folders.

Both give ``{"image": uint8 [H, W, 3] RGB, "label": int [H, W], "file_name": str}`` with
the EXIF orientation of the image applied, and can be pickled for worker processes.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from PIL import Image

from sammi_jax.data.bucket_records import BucketRecords
from sammi_jax.data.prepare.labels import read_index
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.prepare.pixels import label_from_png
from sammi_jax.data.prepare.records import open_records
from sammi_jax.errors import SammiError, reading
from sammi_jax.images import FORMATS, load_image
from sammi_jax.typing import NpArray


@dataclass(frozen=True)
class Glance:
    """An example without the pixels of its image."""

    file_name: str
    image_size: tuple[int, int]  # height, width
    label: NpArray  # int [H, W]


@runtime_checkable
class Glanceable(Protocol):
    """A source that can be checked without decoding its images."""

    def __len__(self) -> int: ...

    def glance(self, index: int) -> Glance:
        """The example of that index; only the head of its image file is read."""
        ...


@runtime_checkable
class Stored(Protocol):
    """A source of files."""

    def files(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of the files that hold its examples, in order."""
        ...


class PreparedSource:
    """One split of a folder that `sammi_jax.data.prepare` wrote.

    Args:
        directory: the folder with ``dataset_info.json``.
        split: one that was prepared.
        num_examples: use the first ones only.
        records: random access to the serialized records; None: the shards in ``directory``.

    Raises:
        SammiError: not a prepared set, without that split, or with fewer than ``num_examples``.
    """

    def __init__(
        self,
        directory: str | Path,
        split: str,
        num_examples: int | None = None,
        records: BucketRecords | None = None,
    ):
        self._directory, self._split = Path(directory), split
        self._remote = records
        mend = "prepare it with 'sammi datasets prepare'"
        with reading(directory, mend, f"cannot open split {split!r}"):
            self._records = open_records(self._directory, split, records)
        self._length = _checked_length(self._directory, num_examples, len(self._records))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The example of that index; IndexError beyond the end."""
        with self._reading(index):
            record = self._record(index)
            return {
                "image": load_image(record["image"]),
                "label": label_from_png(record["label"]),
                "file_name": record["file_name"].decode(),
            }

    def glance(self, index: int) -> Glance:
        """The example of that index without decoding its image."""
        with self._reading(index):
            record = self._record(index)
            size = _image_size(Image.open(BytesIO(record["image"]), formats=FORMATS))
            return Glance(record["file_name"].decode(), size, label_from_png(record["label"]))

    @contextmanager
    def _reading(self, index: SupportsIndex) -> Iterator[None]:
        """Errors over a damaged record, which name it."""
        number = _checked_index(self._directory, index, self._length)
        mend = "prepare the set again"
        try:
            with reading(f"{self._directory}, example {number}", mend):
                yield
        except SammiError as error:
            if str(self._directory) in str(error):
                raise
            raise SammiError(f"{self._directory}, example {number}: {error}") from error

    @property
    def is_remote(self) -> bool:
        """Whether its records are downloaded as they are read."""
        return self._remote is not None

    def files(self) -> Iterator[tuple[str, int]]:
        """The shards."""
        if self._remote is not None:
            yield from self._remote.files()
            return
        for path in sorted(self._directory.glob(f"*-{self._split}.array_record-*")):
            yield path.name, path.stat().st_size

    def _record(self, index: SupportsIndex) -> dict[str, Any]:
        return self._records[operator.index(index)]


class FolderSource:
    """Pairs of image and label files; the values of the labels are class indices.

    Args:
        folder: that holds the files, named in errors.
        pairs: in the order of the examples.
        num_examples: use the first ones only.

    Raises:
        SammiError: fewer pairs than ``num_examples``.
    """

    def __init__(self, folder: Path, pairs: Sequence[Pair], num_examples: int | None = None):
        length = _checked_length(folder, num_examples, len(pairs))
        self._folder, self._pairs = folder, tuple(pairs[:length])

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The example of that index; IndexError beyond the end."""
        pair = self._pairs[_checked_index(self._folder, index, len(self))]
        return {
            "image": load_image(pair.image),
            "label": read_index(pair.labels[0]),
            "file_name": pair.key + pair.image.suffix,
        }

    def files(self) -> Iterator[tuple[str, int]]:
        """Images and labels; one that is gone has -1 bytes."""
        for pair in self._pairs:
            for path in (pair.image, *pair.labels):
                name = path.relative_to(self._folder).as_posix()
                yield name, path.stat().st_size if path.is_file() else -1

    def glance(self, index: int) -> Glance:
        """The example of that index without decoding its image."""
        pair = self._pairs[_checked_index(self._folder, index, len(self))]
        mend = "export the image again"
        with (
            reading(pair.image, mend, "cannot be decoded"),
            Image.open(pair.image, formats=FORMATS) as image,
        ):
            size = _image_size(image)
        return Glance(pair.key + pair.image.suffix, size, read_index(pair.labels[0]))


def _checked_length(where: Path, wanted: int | None, found: int) -> int:
    if wanted is not None and not 0 < wanted <= found:
        raise SammiError(f"{where}: num_examples={wanted}, but it holds {found}; give 1 to {found}")
    return found if wanted is None else wanted


def _checked_index(where: Path, index: SupportsIndex, length: int) -> int:
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"{where}: index {number} of {length}")
    return number


def _image_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) once the EXIF orientation is applied; reads the head of the file."""
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # rotated by 90 degrees
    return (image.width, image.height) if turned else (image.height, image.width)
