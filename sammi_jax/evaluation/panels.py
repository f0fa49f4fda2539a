"""Label maps and panels, written while an evaluation runs."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sammi_jax.config.experiment import EvalConfig
from sammi_jax.data.catalogue import Dataset
from sammi_jax.evaluation.shards import local_rows
from sammi_jax.figures import class_colors, draw_panel, draw_proposals, label_image
from sammi_jax.images import write_image
from sammi_jax.object_store import AnyPath
from sammi_jax.ops.resize import resize_matrix
from sammi_jax.typing import Int, NpArray

_TITLES = ("image", "truth", "prediction", "masks and points")


class ImageWriter:
    """Writes ``labels/SET/STEM.png`` and ``panels/SET/STEM.png`` under the work folder.

    Each process writes the images that it read. The name of a file is the image's path in its set,
    with ``__`` for the separators, so that no two collide.
    """

    def __init__(self, workdir: AnyPath, dataset: Dataset, config: EvalConfig):
        name = dataset.name.replace("/", "_").replace(":", "_")
        self._labels, self._panels = workdir / "labels" / name, workdir / "panels" / name
        self._dataset, self._config = dataset, config
        self._left = config.panels
        # A class of several texts is named by the first one; PAS-20b's background has 39.
        self._names = dict(zip(dataset.merge[::-1], dataset.class_names[::-1], strict=True))
        if dataset.background is not None:
            self._names[dataset.background] = "background"

    def add(self, examples: list[dict[str, Any]], prediction: Any, proposals: Any) -> None:
        """Write what the configuration asks for of one batch."""
        if not examples or not (self._config.save_labels or self._left):
            return
        predicted = local_rows(prediction)
        for row, example in enumerate(examples):
            height, width = example["label"].shape
            stem = str(Path(example["file_name"]).with_suffix("")).replace("/", "__")
            labels = predicted[row, :height, :width]
            if self._config.save_labels:
                image = label_image(labels, self._dataset.num_classes, self._dataset.palette)
                write_image(self._labels / f"{stem}.png", image)
            if self._left:
                self._left -= 1
                panel = self._panel(example, labels, row, proposals)
                write_image(self._panels / f"{stem}.png", panel)

    def _panel(
        self, example: dict[str, Any], labels: Int[NpArray, "h w"], row: int, proposals: Any
    ) -> Image.Image:
        """Image, truth, prediction and, for SAM-MI, masks and points; below, the classes."""
        image, truth = example["image"], example["label"]
        colors = class_colors(self._dataset.num_classes, self._dataset.palette)
        shown = np.full((*truth.shape, 3), 255, np.uint8)  # ignored pixels stay white
        counted = (truth >= 0) & (truth < self._dataset.num_classes)
        shown[counted] = colors[truth[counted]]
        images = [image, shown, colors[labels]]
        if proposals is not None:
            points, point_valid, masks, valid = (
                local_rows(array)[row]
                for array in (
                    proposals.points, proposals.point_valid, proposals.masks, proposals.valid
                )
            )  # fmt: skip
            size = np.array([image.shape[1], image.shape[0]], np.float32)
            on_image = _resize_masks(masks[valid], image.shape[:2])
            images.append(draw_proposals(image, on_image, points[point_valid] * size))
        there = np.bincount(truth[counted], minlength=len(colors))
        there += np.bincount(labels.ravel(), minlength=len(colors))
        order = [int(c) for c in np.argsort(-there, kind="stable") if there[c]]
        entries = [(self._names[c], tuple(colors[c].tolist())) for c in order]
        return draw_panel(zip(_TITLES, images, strict=False), entries)


def _resize_masks(masks: NpArray, size: tuple[int, int]) -> NpArray:
    """Masks bool ``[n, h, w]`` at the image's (height, width)."""
    rows, columns = (
        resize_matrix(side, out) for side, out in zip(masks.shape[-2:], size, strict=True)
    )
    soft = np.einsum("oh,nhw,pw->nop", rows, masks.astype(np.float32), columns, optimize=True)
    return soft >= 0.5
