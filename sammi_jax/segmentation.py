"""The result of segmenting one picture, and how it is drawn and written."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sammi_jax.typing import Bool, Float, Int, NpArray, UInt8

_OPACITY = 0.55
_MAX_PALETTE = 256  # a palette PNG holds no more; longer lists are written as 16-bit grey


def palette(num_classes: int) -> NpArray:
    """Distinct RGB colours ``uint8 [n, 3]``: PASCAL VOC's bit-interleaved map without its black."""
    index = np.arange(1, num_classes + 1)
    colours = np.zeros((num_classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def class_colours(num_classes: int, colours: tuple[tuple[int, ...], ...] | None) -> NpArray:
    """A data set's own colours, or `palette` where it has none; uint8 ``[n, 3]``."""
    return palette(num_classes) if colours is None else np.array(colours, np.uint8)


def label_image(
    labels: Int[NpArray, "h w"],
    num_classes: int,
    colours: tuple[tuple[int, ...], ...] | None = None,
) -> Image.Image:
    """A label map: a palette PNG of class indices; 16-bit grey beyond 256 classes."""
    if num_classes > _MAX_PALETTE:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8), mode="P")
    picture.putpalette(class_colours(num_classes, colours).ravel().tolist())
    return picture


def draw_proposals(
    pixels: UInt8[NpArray, "h w 3"], masks: Bool[NpArray, "n h w"], points: Float[NpArray, "k 2"]
) -> Image.Image:
    """A picture with the masks' outlines in white and the points (x, y in pixels) in yellow."""
    pixels = pixels.copy()
    pixels[_outlines(masks, pixels.shape[:2])] = 255
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(1, min(pixels.shape[:2]) // 160)
    for x, y in points:
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=(255, 255, 0), outline=(0, 0, 0))
    return picture


@dataclass(frozen=True)
class Segmentation:
    """One segmented picture of H x W pixels.

    Attributes:
        image: the picture, uint8 ``[H, W, 3]``.
        class_names: the T names.
        labels: int32 ``[H, W]``, index into ``class_names``.
        scores: float32 ``[T, H, W]`` in [0, 1]; each class is judged for itself.
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
        """Write the overlay: classes in colour, mask outlines in white, points, and a legend."""
        self.overlay().save(path)

    def overlay(self) -> Image.Image:
        """The picture that `save` writes."""
        colours = palette(len(self.class_names))
        blend = (1 - _OPACITY) * self.image + _OPACITY * colours[self.labels]
        picture = draw_proposals(blend.round().astype(np.uint8), self.masks, self.points)
        return _with_legend(picture, self._areas(), colours)

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
        paths[2].write_text(json.dumps(self.summary(), indent=1, ensure_ascii=False) + "\n")
        return paths


def _outlines(masks: NpArray, shape: tuple[int, ...]) -> NpArray:
    """Pixels inside a mask whose right or lower neighbour is outside it."""
    edge = np.zeros(shape, bool)
    for mask in masks:
        edge[:, :-1] |= mask[:, :-1] & ~mask[:, 1:]
        edge[:-1] |= mask[:-1] & ~mask[1:]
    return edge


def _with_legend(
    picture: Image.Image, areas: list[tuple[int, str, int]], colours: NpArray
) -> Image.Image:
    """Append a column that names the classes, largest first, as many as fit."""
    line, pad = 16, 6
    # Small pictures are enlarged, or the legend would be larger than they are.
    scale = max(1, 384 // max(picture.size))
    picture = picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )
    total = sum(count for _, _, count in areas)
    rows = areas[: max(1, (picture.height - pad) // line)]
    texts = [f"{name}  {100 * count / total:.1f}%" for _, name, count in rows]
    draw = ImageDraw.Draw(picture)
    width = int(max(draw.textlength(text) for text in texts)) + 3 * pad + line
    canvas = Image.new("RGB", (picture.width + width, max(picture.height, line + pad)), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for row, ((index, _, _), text) in enumerate(zip(rows, texts, strict=True)):
        top, left = pad + row * line, picture.width + pad
        colour = tuple(int(c) for c in colours[index])
        draw.rectangle((left, top, left + line - 5, top + line - 5), fill=colour, outline="black")
        draw.text((left + line, top - 1), text, fill="black")
    return canvas
