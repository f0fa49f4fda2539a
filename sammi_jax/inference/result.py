"""The result of segmenting one image, and how it is drawn and written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sammi_jax.figures import blend_classes, draw_panel, draw_proposals, label_image, palette
from sammi_jax.files import write_json
from sammi_jax.typing import NpArray


@dataclass(frozen=True)
class Segmentation:
    """One segmented image of H x W pixels.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``.
        class_names: the T names.
        labels: int32 ``[H, W]``, index into ``class_names``.
        scores: float32 ``[T, H, W]`` in [0, 1], for each class by itself: they do not sum to 1.
        points: float32 ``[K, 2]``, the valid point prompts (x, y) in pixels.
        masks: bool ``[N, H, W]``, the aggregated SAM masks; none for CAT-Seg.
    """

    image: NpArray
    class_names: list[str]
    labels: NpArray
    scores: NpArray
    points: NpArray
    masks: NpArray

    def save(self, path: str | Path) -> None:
        """Write the overlay: classes in color, mask outlines in white, points, and a legend."""
        self.overlay().save(path)

    def overlay(self) -> Image.Image:
        """The figure that `save` writes."""
        colors = palette(len(self.class_names))
        blended = blend_classes(self.image, self.labels, colors)
        entries = [
            (f"{name}  {100 * pixels / self.labels.size:.1f}%", tuple(colors[index].tolist()))
            for index, name, pixels in self._areas()
        ]
        return draw_panel([("", draw_proposals(blended, self.masks, self.points))], entries)

    def _areas(self) -> list[tuple[int, str, int]]:
        """(index, name, pixels) of the classes that occur, largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.class_names))
        order = np.argsort(-counts, kind="stable")
        return [(int(i), self.class_names[i], int(counts[i])) for i in order if counts[i]]

    def summary(self) -> dict:
        """Size, points, masks, and for each class that occurs its share and mean score."""
        return {
            "height": self.labels.shape[0],
            "width": self.labels.shape[1],
            "class_names": self.class_names,
            "num_points": len(self.points),
            "num_masks": len(self.masks),
            "points": [[round(float(x), 2), round(float(y), 2)] for x, y in self.points],
            "classes": [
                {
                    "index": index,
                    "name": name,
                    "pixels": pixels,
                    "fraction": round(pixels / self.labels.size, 6),
                    "mean_score": round(float(self.scores[index][self.labels == index].mean()), 6),
                }
                for index, name, pixels in self._areas()
            ],
        }

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``STEM_overlay.png``, ``STEM_labels.png`` and ``STEM.json``; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}{end}" for end in ("_overlay.png", "_labels.png", ".json")]
        self.save(paths[0])
        label_image(self.labels, len(self.class_names)).save(paths[1])
        write_json(paths[2], self.summary())
        return paths
