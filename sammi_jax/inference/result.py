"""The result of segmenting one image, and how it is drawn and written."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from sammi_jax.errors import SammiError
from sammi_jax.figures import blend_classes, draw_panel, draw_proposals, label_image, palette
from sammi_jax.files import write_json
from sammi_jax.images import stripes, write_image
from sammi_jax.models.proposals import MaskProposals
from sammi_jax.object_store import AnyPath, as_path
from sammi_jax.ops.resize import between_rows, bilinear_taps
from sammi_jax.ops.rle import encode_classes, encode_rle
from sammi_jax.typing import Bool, Float, Int, NpArray, UInt8

_LONGEST_FIGURE = 4096  # pixels: more than a screen shows


@dataclass(frozen=True)
class Proposals:
    """The masks behind a result, as the network sees them, and their points.

    Attributes:
        points: float32 ``[k, 2]``, (x, y) in pixels of the image.
        masks: bool ``[n, G, G]``: the whole image, squashed to a square.
    """

    points: Float[NpArray, "k 2"]
    masks: Bool[NpArray, "n g g"]

    @classmethod
    def of_canvas(cls, proposals: MaskProposals | None, size: tuple[int, int]) -> "Proposals":
        """Those that are valid, of a batch of one; none for None."""
        if proposals is None:
            return cls(np.zeros((0, 2), np.float32), np.zeros((0, 1, 1), bool))
        points, point_valid, masks, valid = (
            np.asarray(x[0])
            for x in (proposals.points, proposals.point_valid, proposals.masks, proposals.valid)
        )
        pixels = points[point_valid] * np.array([size[1], size[0]], np.float32)
        return cls(pixels, masks[valid])

    def on_image(self, size: tuple[int, int]) -> Iterator[Bool[NpArray, "h w"]]:
        """The masks one by one at the image's (height, width): where bilinear values reach 1/2."""
        for mask in self.masks:
            rows, row_weights = bilinear_taps(mask.shape[0], size[0], size[0])
            taps, weights = bilinear_taps(mask.shape[1], size[1], size[1])
            wide = np.ascontiguousarray(between_rows(mask.T, taps, weights).T)
            found = np.empty(size, bool)
            for part in stripes(size):
                found[part] = between_rows(wide, rows[part], row_weights[part]) >= 0.5
            yield found


@dataclass(frozen=True)
class ScoreMaps:
    """Scores of all classes, computed when they are asked for: they are large."""

    on_image: Callable[[], Float[NpArray, "t h w"]]
    on_canvas: Callable[[], Float[NpArray, "t g g"]]


@dataclass(frozen=True)
class Segmentation:
    """One segmented image of H x W pixels.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``.
        class_names: the T names.
        labels: int32 ``[H, W]``, index into ``class_names``.
        confidence: float32 ``[H, W]`` in [0, 1], the best class's score.
        proposals: points and masks as the network sees them; none for CAT-Seg.
        score_maps: what `scores` and `canvas_scores` ask for; None where they were not kept.
    """

    image: UInt8[NpArray, "h w 3"]
    class_names: list[str]
    labels: Int[NpArray, "h w"]
    confidence: Float[NpArray, "h w"]
    proposals: Proposals = field(default_factory=lambda: Proposals.of_canvas(None, (1, 1)))
    score_maps: ScoreMaps | None = None

    @property
    def points(self) -> Float[NpArray, "k 2"]:
        """The valid point prompts, (x, y) in pixels."""
        return self.proposals.points

    @cached_property
    def masks(self) -> Bool[NpArray, "n h w"]:
        """The aggregated SAM masks, made when they are first asked for; none for CAT-Seg."""
        size = self.labels.shape
        masks = np.zeros((len(self.proposals.masks), *size), bool)
        for mask, found in zip(masks, self.proposals.on_image((size[0], size[1])), strict=True):
            mask[:] = found
        return masks

    @cached_property
    def scores(self) -> Float[NpArray, "t h w"]:
        """In [0, 1], for each class by itself: they do not sum to 1.

        Made when they are first asked for: ``4 T H W`` bytes.

        Raises:
            SammiError: they were not kept.
        """
        return self._kept().on_image()

    @cached_property
    def canvas_scores(self) -> Float[NpArray, "t g g"]:
        """Scores of the whole image, squashed to the network's square. Raises as `scores`."""
        return self._kept().on_canvas()

    def _kept(self) -> ScoreMaps:
        if self.score_maps is None:
            raise SammiError(
                "scores were not kept for this result; segment the image by itself, without tiles"
            )
        return self.score_maps

    def save(self, path: Any) -> None:
        """Write the overlay: classes in color, mask outlines in white, points, and a legend.

        Raises:
            SammiError: the suffix is that of no image format.
        """
        path = as_path(path)
        format = Image.registered_extensions().get(path.suffix.lower())
        if format not in Image.SAVE:
            raise SammiError(
                f"{path}: {path.suffix or 'no suffix'} is no image format that can be written; "
                "name a .png or .jpg file"
            )
        write_image(path, self.overlay(), format)

    def overlay(self) -> Image.Image:
        """The figure that `save` writes; large images are drawn at most 4,096 pixels long."""
        step = -(-max(self.labels.shape) // _LONGEST_FIGURE)
        pixels, labels = self.image[::step, ::step], self.labels[::step, ::step]
        colors = palette(len(self.class_names))
        entries = [
            (
                f"{entry['name']}  {100 * entry['fraction']:.1f}%",
                tuple(colors[entry["index"]].tolist()),
            )
            for entry in self.classes
        ]
        masks = self.proposals.on_image((labels.shape[0], labels.shape[1]))
        blended = blend_classes(pixels, labels, colors)
        return draw_panel([("", draw_proposals(blended, masks, self.points / step))], entries)

    def _repr_png_(self) -> bytes:
        """The overlay: what a notebook shows."""
        with io.BytesIO() as file:
            self.overlay().save(file, format="PNG")
            return file.getvalue()

    @cached_property
    def classes(self) -> list[dict[str, Any]]:
        """Index, name, pixels, share and mean score of the classes that occur, largest first."""
        pixels, total = self._count(slice(None), slice(None))
        order = np.argsort(-pixels, kind="stable")
        return [
            {
                "index": int(index),
                "name": self.class_names[index],
                "pixels": int(pixels[index]),
                "fraction": round(int(pixels[index]) / self.labels.size, 6),
                "mean_score": round(float(total[index] / pixels[index]), 6),
            }
            for index in order
            if pixels[index]
        ]

    def _count(self, rows: slice, columns: slice, mask: Any = None) -> tuple[NpArray, NpArray]:
        """Pixels of each class in a box, and the sum of their scores; within a mask of the box."""
        labels, scores = self.labels[rows, columns], self.confidence[rows, columns]
        number = len(self.class_names)
        pixels, total = np.zeros(number, np.int64), np.zeros(number)
        for part in stripes(labels.shape):
            inside = slice(None) if mask is None else mask[part]
            found = labels[part][inside].ravel()
            pixels += np.bincount(found, minlength=number)
            total += np.bincount(found, scores[part][inside].ravel(), minlength=number)
        return pixels, total

    def regions(self) -> list[dict[str, Any]]:
        """Each mask with the class that most of its pixels have.

        ``name``, ``index``, ``share`` of the mask's pixels with that class, their mean ``score``,
        ``area`` in pixels, ``bbox`` (x, y, width, height), and the mask as COCO's compressed
        ``segmentation``.
        """
        size = (self.labels.shape[0], self.labels.shape[1])
        found = []
        for mask in self.proposals.on_image(size):
            if not mask.any():  # of so small an object that the image's pixels miss it
                continue
            rows, columns = (_span(mask.any(axis=axis)) for axis in (1, 0))
            pixels, total = self._count(rows, columns, mask[rows, columns])
            index, area = int(np.argmax(pixels)), int(pixels.sum())
            found.append(
                {
                    "index": index,
                    "name": self.class_names[index],
                    "share": round(int(pixels[index]) / area, 6),
                    "score": round(float(total[index] / pixels[index]), 6),
                    "area": area,
                    "bbox": _box(rows, columns),
                    "segmentation": encode_rle(mask),
                }
            )
        return found

    def summary(self) -> dict[str, Any]:
        """Size, points, and for each class that occurs its share and mean score."""
        return {
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "class_names": self.class_names,
            "num_points": len(self.points),
            "num_masks": len(self.proposals.masks),
            "points": [[round(float(x), 2), round(float(y), 2)] for x, y in self.points],
            "classes": self.classes,
        }

    def annotations(self) -> list[dict[str, Any]]:
        """Each class that occurs as one of COCO's annotations, without ids of image and category.

        ``segmentation`` (compressed runs), ``area``, ``bbox`` (x, y, width, height), ``score`` (the
        mean of the class's pixels), ``iscrowd`` 0, and ``index`` of the class.
        """
        masks = encode_classes(self.labels)
        boxes = self._boxes()
        return [
            {
                "index": entry["index"],
                "segmentation": masks[entry["index"]],
                "area": entry["pixels"],
                "bbox": boxes[entry["index"]],
                "score": entry["mean_score"],
                "iscrowd": 0,
            }
            for entry in self.classes
        ]

    def _boxes(self) -> dict[int, list[int]]:
        """x, y, width and height of each class that occurs."""
        height, width = self.labels.shape
        in_row = np.zeros((len(self.class_names), height), bool)
        in_column = np.zeros((len(self.class_names), width), bool)
        for part in stripes(self.labels.shape):
            labels = self.labels[part]
            in_row[labels, np.arange(part.start, part.stop)[:, None]] = True
            in_column[labels, np.arange(width)[None]] = True
        return {
            entry["index"]: _box(_span(in_row[entry["index"]]), _span(in_column[entry["index"]]))
            for entry in self.classes
        }

    def write(
        self, folder: AnyPath, stem: str, record: Mapping[str, Any] | None = None
    ) -> list[AnyPath]:
        """Write ``STEM_overlay.png``, ``STEM_labels.png`` and ``STEM.json``; returns the paths.

        The JSON holds ``record``, `summary`, `annotations` and `regions`; it is written last.
        """
        paths = [folder / f"{stem}{end}" for end in ("_overlay.png", "_labels.png", ".json")]
        self.save(paths[0])
        write_image(paths[1], label_image(self.labels, len(self.class_names)))
        found = {"annotations": self.annotations(), "regions": self.regions()}
        write_json(paths[2], dict(record or {}) | self.summary() | found)
        return paths


def _span(occupied: Any) -> slice:
    """From the first to the last place that is occupied."""
    places = np.flatnonzero(occupied)
    return slice(int(places[0]), int(places[-1]) + 1)


def _box(rows: slice, columns: slice) -> list[int]:
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
