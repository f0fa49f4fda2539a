"""Label maps and panels of an evaluation, written as it goes."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sammi_jax.data.catalogue import Dataset
from sammi_jax.evaluation.shards import local_rows
from sammi_jax.experiment import EvalConfig
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.segmentation import class_colours, draw_proposals, label_image
from sammi_jax.typing import Int, NpArray

_GAP, _CAPTION, _LINE = 6, 14, 16  # pixels: between pictures, above them, of a legend's line
_SMALL = 384  # panels enlarge pictures whose sides are all below half of it
_TITLES = ("image", "truth", "prediction", "masks and points")


class Pictures:
    """Writes ``labels/SET/STEM.png`` and ``panels/SET/STEM.png`` under the work folder.

    Each process writes the images that it read. An image's path in its set becomes the name, with
    ``__`` for the separators, so that no two collide.
    """

    def __init__(self, workdir: Path, dataset: Dataset, config: EvalConfig):
        name = dataset.name.replace("/", "_").replace(":", "_")
        self._labels, self._panels = workdir / "labels" / name, workdir / "panels" / name
        self._dataset, self._config = dataset, config
        self._left = config.panels
        # A class of several texts goes by its first one; PAS-20b's background has 39.
        self._names = dict(zip(dataset.merge[::-1], dataset.class_names[::-1], strict=True))
        if dataset.background is not None:
            self._names[dataset.background] = "background"

    def add(self, examples: list[dict[str, Any]], prediction: Any, proposals: Any) -> None:
        """Write what is asked for of one batch."""
        if not examples or not (self._config.save_labels or self._left):
            return
        predicted = local_rows(prediction)
        for row, example in enumerate(examples):
            height, width = example["label"].shape
            stem = str(Path(example["file_name"]).with_suffix("")).replace("/", "__")
            labels = predicted[row, :height, :width]
            if self._config.save_labels:
                self._labels.mkdir(parents=True, exist_ok=True)
                picture = label_image(labels, self._dataset.num_classes, self._dataset.palette)
                picture.save(self._labels / f"{stem}.png")
            if self._left:
                self._left -= 1
                self._panels.mkdir(parents=True, exist_ok=True)
                self._panel(example, labels, row, proposals).save(self._panels / f"{stem}.png")

    def _panel(
        self, example: dict[str, Any], labels: Int[NpArray, "h w"], row: int, proposals: Any
    ) -> Image.Image:
        """Image, truth, prediction and, for SAM-MI, masks and points; below, the classes."""
        image, truth = example["image"], example["label"]
        colours = class_colours(self._dataset.num_classes, self._dataset.palette)
        shown = np.full((*truth.shape, 3), 255, np.uint8)  # ignored pixels stay white
        counted = (truth >= 0) & (truth < self._dataset.num_classes)
        shown[counted] = colours[truth[counted]]
        pictures = [image, shown, colours[labels]]
        if proposals is not None:
            points, point_valid, masks, valid = (
                local_rows(array)[row]
                for array in (
                    proposals.points, proposals.point_valid, proposals.masks, proposals.valid
                )
            )  # fmt: skip
            size = np.array([image.shape[1], image.shape[0]], np.float32)
            on_image = _resize_masks(masks[valid], image.shape[:2])
            pictures.append(np.asarray(draw_proposals(image, on_image, points[point_valid] * size)))
        there = np.bincount(truth[counted], minlength=len(colours))
        there += np.bincount(labels.ravel(), minlength=len(colours))
        order = [int(c) for c in np.argsort(-there, kind="stable") if there[c]]
        entries = [(self._names[c], tuple(colours[c].tolist())) for c in order]
        return _with_legend(_side_by_side(pictures), entries)


def _resize_masks(masks: NpArray, size: tuple[int, int]) -> NpArray:
    """Masks bool ``[n, h, w]`` at the image's (height, width)."""
    rows, columns = (
        resize_matrix(side, out) for side, out in zip(masks.shape[-2:], size, strict=True)
    )
    soft = np.einsum("oh,nhw,pw->nop", rows, masks.astype(np.float32), columns, optimize=True)
    return soft >= 0.5


def _side_by_side(pictures: list[NpArray]) -> Image.Image:
    scale = max(1, _SMALL // max(pictures[0].shape[:2]))
    height, width = (side * scale for side in pictures[0].shape[:2])
    step = width + _GAP
    canvas = Image.new("RGB", (step * len(pictures) - _GAP, height + _CAPTION), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, picture) in enumerate(zip(_TITLES, pictures, strict=False)):
        draw.text((column * step + 2, 1), title, fill="black")
        shown = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(shown, (column * step, _CAPTION))
    return canvas


def _with_legend(panel: Image.Image, entries: list[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """Name and colour of classes below a panel, in as many lines as they need."""
    measure = ImageDraw.Draw(panel)
    places, left, top = [], 0, panel.height + _GAP
    for name, _ in entries:
        width = int(measure.textlength(name)) + 2 * _LINE
        if left and left + width > panel.width:
            left, top = 0, top + _LINE
        places.append((left, top))
        left += width
    canvas = Image.new("RGB", (panel.width, top + _LINE), "white")
    canvas.paste(panel, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        side = _LINE - 5
        draw.rectangle((left, top, left + side, top + side), fill=colour, outline="black")
        draw.text((left + _LINE, top), name, fill="black")
    return canvas
