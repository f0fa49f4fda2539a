"""A segmented image as the page shows it: small enough to be drawn again at every click."""

import html
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sammi_jax.figures import blend_classes, blend_colors, draw_points, mask_outlines, palette
from sammi_jax.inference.prompting import SamMasks
from sammi_jax.inference.result import Segmentation
from sammi_jax.typing import Bool, Float, Integer, NpArray, UInt8

COLORS, OUTLINES, POINTS, CLICKED = "Class colors", "Mask outlines", "Points", "Clicked mask"

_LONG_SIDE = 1280  # pixels of what is shown; larger images are reduced
_SMALL = 640  # and smaller ones enlarged by a whole number
_PIXELS_OF_WIDTH = 320  # of a side, for each further pixel of a line
_CLICK_COLOR = (0, 229, 255)  # no class of a short list has it


@dataclass(frozen=True)
class View:
    """What is drawn, ``h x w`` pixels, of an image of H x W.

    Attributes:
        scale: h / H.
        size: (H, W).
        pixels: RGB.
        labels: classes of the pixels.
        outlines: of SAM's masks.
        points: x, y in pixels of the view.
        num_classes: of the list.
        clicked: SAM's mask for a click, if any.
        click: where that was, x, y in pixels of the view.
    """

    scale: float
    size: tuple[int, int]
    pixels: UInt8[NpArray, "h w 3"]
    labels: Integer[NpArray, "h w"]
    outlines: Bool[NpArray, "h w"]
    points: Float[NpArray, "k 2"]
    num_classes: int
    clicked: Bool[NpArray, "h w"] | None = None
    click: tuple[float, float] = (0.0, 0.0)

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the view as a point of the image."""
        height, width = self.size
        scaled = (x + 0.5) / self.scale, (y + 0.5) / self.scale
        return min(scaled[0], width - 1.0), min(scaled[1], height - 1.0)


def make_view(result: Segmentation) -> View:
    """The view of a result."""
    height, width = result.labels.shape
    long = max(height, width)
    scale = float(max(1, _SMALL // long)) if long < _LONG_SIDE else _LONG_SIDE / long
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    pixels = Image.fromarray(result.image).resize((size[1], size[0]), resampling)
    return View(
        scale=scale,
        size=(height, width),
        pixels=np.array(pixels),
        labels=_sampled(result.labels, size).astype(np.uint16),
        outlines=_thickened(mask_outlines(result.proposals.on_image(size), size)),
        points=(result.points * scale).astype(np.float32),
        num_classes=len(result.class_names),
    )


def with_click(view: View, found: SamMasks, point: tuple[float, float]) -> View:
    """The view with SAM's mask for a point (x, y) of the image."""
    size = (view.labels.shape[0], view.labels.shape[1])
    click = point[0] * view.scale, point[1] * view.scale
    return replace(view, clicked=_sampled(found.masks[0], size), click=click)


def _sampled(values: NpArray, size: tuple[int, int]) -> NpArray:
    """The nearest values, at another size."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _thickened(lines: NpArray) -> NpArray:
    """Lines that are still seen when a browser shows a large image small."""
    for _ in range(min(lines.shape) // _PIXELS_OF_WIDTH):
        grown = lines.copy()
        grown[1:] |= lines[:-1]
        grown[:, 1:] |= lines[:, :-1]
        lines = grown
    return lines


def draw(view: View, layers: list[str]) -> UInt8[NpArray, "h w 3"]:
    """The image with those of its layers that are named."""
    pixels = view.pixels
    if COLORS in layers:
        pixels = blend_classes(pixels, view.labels, palette(view.num_classes))
    pixels = pixels.copy()
    mask = view.clicked if CLICKED in layers else None
    if mask is not None:
        color = np.broadcast_to(np.array(_CLICK_COLOR, np.uint8), pixels.shape)
        pixels[mask] = blend_colors(pixels[mask], color[mask])
        pixels[_thickened(mask_outlines([mask], mask.shape))] = _CLICK_COLOR
    if OUTLINES in layers:
        pixels[view.outlines] = 255
    if POINTS in layers:
        pixels = draw_points(pixels, view.points)
    if mask is not None:
        pixels = _with_target(pixels, view.click)
    return pixels


def _with_target(pixels: NpArray, center: tuple[float, float]) -> NpArray:
    """Where the click was: a ring around a dot, so that no point looks like it."""
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    dot = max(2, min(image.size) // 140)
    for radius, color in ((3 * dot, "black"), (2.5 * dot, "white"), (2 * dot, "black")):
        pen.circle(center, radius, outline=color, width=dot)
    pen.circle(center, dot, fill=_CLICK_COLOR, outline="black")
    return np.asarray(image)


def legend(classes: list[dict[str, Any]], num_classes: int) -> str:
    """HTML: the classes of `Segmentation.classes` with color, share and mean score."""
    colors = palette(num_classes)
    rows = [
        "<tr><td><span class='swatch' style='background:rgb({},{},{})'></span></td>"
        "<td class='name'>{}</td>"
        "<td class='bar'><div style='width:{:.1f}%;background:rgb({},{},{})'></div></td>"
        "<td class='number'>{:.1f}%</td><td class='number'>{:.2f}</td></tr>".format(
            *(rgb := colors[entry["index"]].tolist()),
            html.escape(entry["name"]),
            100 * entry["fraction"],
            *rgb,
            100 * entry["fraction"],
            entry["mean_score"],
        )
        for entry in classes
    ]
    return (
        "<table class='legend'><thead><tr><th></th><th>class</th><th></th><th>share</th>"
        f"<th title='mean over the pixels of the class, 0 to 1'>score</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
