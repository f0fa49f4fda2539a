"""Segmenting any number of image files into a folder: batches, one line an image, resuming."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sammi_jax.config.fields import to_dict
from sammi_jax.data.input.prefetch import prefetch
from sammi_jax.errors import SammiError, failure, reading
from sammi_jax.files import read_json, write_json
from sammi_jax.images import load_image
from sammi_jax.inference.classes import ClassList
from sammi_jax.inference.geotiff import GeoImage, read_geotiff
from sammi_jax.inference.image_files import ImageFile
from sammi_jax.inference.result import Segmentation
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.inference.tiles import TileGrid
from sammi_jax.object_store import AnyPath, absolute, exists
from sammi_jax.typing import NpArray
from sammi_jax.weights.model_folder import weights_digest

SETTINGS_FILE = ".settings.json"  # what the results of an output folder were made with


@dataclass(frozen=True)
class _Decoded:
    """An image file's pixels, or why there are none."""

    file: ImageFile
    stamp: list[int]  # of the file before it was read
    pixels: NpArray | None = None
    place: GeoImage | None = None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one image file.

    Attributes:
        file: the image.
        written: the files of its result; empty where it failed or was done before.
        error: why it failed; empty where it did not.
    """

    file: ImageFile
    written: tuple[AnyPath, ...] = ()
    error: str = ""


class FileSegmenter:
    """Segments image files into one folder, whose results all have the same settings.

    Args:
        model: the model.
        classes: the classes.
        out: folder of the results.
        batch_size: images that enter the network together.
        tiles: cut images into these tiles; None: as a whole.
    """

    def __init__(
        self,
        model: Segmenter,
        classes: ClassList,
        out: AnyPath,
        batch_size: int,
        tiles: TileGrid | None = None,
    ):
        self._model, self._classes, self._out = model, classes, out
        self._batch_size, self._tiles = batch_size, tiles
        self._settings_sha256 = ""  # from `claim` on

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self._classes.names

    def claim(self, model_digest: str, overwrite: bool) -> None:
        """Record the settings in the folder, so that other ones do not mix their results in.

        Args:
            model_digest: from `digest_model`.
            overwrite: take over a folder of other settings; images are then segmented again.

        Raises:
            SammiError: the folder holds results of other settings, and ``overwrite`` is False.
        """
        settings = {
            "model_sha256": model_digest,
            "class_names": list(self._classes.names),
            "texts": list(self._classes.texts),
            "background": self._classes.background,
            "threshold": self._classes.threshold,
            "keep_classes": self._model.keep_classes,
            "tile": None if self._tiles is None else [self._tiles.side, self._tiles.overlap],
        }
        self._settings_sha256 = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        path = self._out / SETTINGS_FILE
        if exists(path) and not overwrite:
            before = read_json(path)
            other = [name for name in settings if before.get(name) != settings[name]]
            if other:
                raise SammiError(
                    f"{self._out}: holds results of other settings ({', '.join(other)}); give "
                    "another --out, or --overwrite to replace them"
                )
        write_json(path, settings)

    def pending(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """The images without a result of these settings, or that have changed since.

        Raises:
            SammiError: a result of that name belongs to another image.
        """
        return [file for file in files if not self._is_done(file)]

    def _is_done(self, file: ImageFile) -> bool:
        record = self._out / f"{file.name}.json"
        if not exists(record):
            return False
        found = read_json(record)
        image = found.get("image")
        if image != _identity(file):
            raise SammiError(
                f"{record}: is the result of {image}, and {file.place} would overwrite it; give "
                "another --out"
            )
        # An interrupted --overwrite leaves results of other settings.
        if found.get("settings_sha256") != self._settings_sha256:
            return False
        return found.get("image_stamp") == _stamp(file)

    def __call__(self, files: Sequence[ImageFile]) -> Iterator[Outcome]:
        """Segment the images; whatever one does, the others are still segmented."""
        starts = range(0, len(files), self._batch_size)
        groups = (files[start : start + self._batch_size] for start in starts)
        for decoded in prefetch([_decode(file) for file in group] for group in groups):
            yield from self._write(decoded)

    def _write(self, group: Sequence[_Decoded]) -> Iterator[Outcome]:
        readable = [one for one in group if one.pixels is not None]
        yield from (Outcome(one.file, error=one.error) for one in group if one.pixels is None)
        try:
            results: list[Segmentation | None] = list(self._segment(readable))
        except Exception:  # one image of the batch: which one shows when they are alone
            results = [None] * len(readable)
        for one, result in zip(readable, results, strict=True):
            yield _guarded(one.file, lambda o=one, r=result: self._save(o, r))

    def _segment(self, group: Sequence[_Decoded]) -> list[Segmentation]:
        images = [one.pixels for one in group if one.pixels is not None]
        if not images:
            return []
        if self._tiles is None:
            return self._model.segment_batch(images, self._classes, self._batch_size)
        return [
            self._model.segment_tiles(image, self._classes, _placed(self._tiles, one.place))
            for image, one in zip(images, group, strict=True)
        ]

    def _save(self, one: _Decoded, result: Segmentation | None) -> list[AnyPath]:
        if result is None:
            result = self._segment([one])[0]
        stem = self._out / one.file.name
        written = []
        if one.place is not None:
            labels = stem.parent / f"{stem.name}_labels.tif"
            one.place.write_labels(result.labels, len(result.class_names), labels)
            written.append(labels)
        record = {
            "image": _identity(one.file),
            "image_stamp": one.stamp,
            "settings_sha256": self._settings_sha256,
        }
        return [*written, *result.write(stem.parent, stem.name, record)]


def _identity(file: ImageFile) -> str:
    return str(absolute(file.place))


def _stamp(file: ImageFile) -> list[int]:
    """Bytes of an image file and when it was written (ns); empty: it is gone.

    Compared for equality, so that no clock decides what is newer.
    """
    try:
        found = file.path.stat()
    except OSError:  # reading it will say so
        return []
    return [found.st_size, found.st_mtime_ns]


def _placed(tiles: TileGrid, place: GeoImage | None) -> TileGrid:
    """The grid, which begins at the same place on the ground in every image."""
    return tiles if place is None else replace(tiles, origin=place.origin)


def _decode(file: ImageFile) -> _Decoded:
    stamp = _stamp(file)
    try:
        place = read_geotiff(file.path)
        pixels = load_image(file.path) if place is None else place.pixels
        return _Decoded(file, stamp, pixels, place)
    except Exception as error:  # whatever a file does, the others are still read
        return _Decoded(file, stamp, error=failure(file.place, error))


def _guarded(file: ImageFile, save: Callable[[], list[AnyPath]]) -> Outcome:
    try:
        return Outcome(file, tuple(save()))
    except Exception as error:  # the same of segmenting and writing
        return Outcome(file, error=failure(file.place, error))


def digest_model(model: Segmenter, folder: AnyPath) -> str:
    """SHA-256 of a model's configuration and of the weights in its folder."""
    config = json.dumps(to_dict(model.config), sort_keys=True)
    return hashlib.sha256((config + weights_digest(folder)).encode()).hexdigest()


def coco_file(
    files: Sequence[ImageFile], out: AnyPath, class_names: Sequence[str]
) -> dict[str, Any]:
    """All results as one file of COCO's: ``images``, ``categories``, ``annotations``.

    Category ids are labels plus one, as COCO's begin at 1. Images without a result are left out.

    Args:
        files: the images.
        out: folder of their results.
        class_names: of all of them.
    """
    images, annotations = [], []
    for file in files:
        path = out / f"{file.name}.json"
        if not exists(path):
            continue
        with reading(path, "remove it and segment the image again"):
            annotations_of, size = _record(read_json(path))
        number = len(images) + 1
        images.append({"id": number, "file_name": str(file.place), **size})
        for found in annotations_of:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, 1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _record(record: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """COCO's annotations, without ids, and the size of the image that a result is of."""
    found = [
        {"category_id": one["index"] + 1} | {key: one[key] for key in one if key != "index"}
        for one in record["annotations"]
    ]
    return found, {"height": record["height"], "width": record["width"]}
