"""Drawing of results: palettes, label maps, overlays, panels with legends, and curves."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sammi_jax.images import stripes, write_image
from sammi_jax.object_store import AnyPath
from sammi_jax.typing import Bool, Float, Integer, NpArray, UInt8

Colors = tuple[tuple[int, ...], ...]  # RGB of every class

WIDTH, HEIGHT, MARGIN = 800, 240, 56  # of one curve's panel, in pixels
_INK, _CURVE = (40, 40, 40), (31, 119, 180)
_MAX_PALETTE = 256  # a palette PNG holds no more; longer lists are written as 16-bit gray
_OPACITY = 0.55  # of the classes' colors over an image
_GAP, _CAPTION, _LINE = 6, 14, 16  # pixels: between images, above them, of a legend's line
_SMALL = 384  # images whose sides are all below half of it are drawn larger


def palette(num_classes: int) -> UInt8[NpArray, "n 3"]:
    """Distinct RGB colors: PASCAL VOC's bit-interleaved map without its black."""
    index = np.arange(1, num_classes + 1)
    colors = np.zeros((num_classes, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def class_colors(num_classes: int, colors: Colors | None) -> UInt8[NpArray, "n 3"]:
    """The colors of a data set, or `palette` where it has none."""
    return palette(num_classes) if colors is None else np.array(colors, np.uint8)


def label_image(
    labels: Integer[NpArray, "h w"], num_classes: int, colors: Colors | None = None
) -> Image.Image:
    """A label map: an image of class indices with a palette; 16-bit gray beyond 256 classes."""
    if num_classes > _MAX_PALETTE:
        return Image.fromarray(labels.astype(np.uint16))
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(class_colors(num_classes, colors).ravel().tolist())
    return image


def blend_classes(
    pixels: UInt8[NpArray, "h w 3"], labels: Integer[NpArray, "h w"], colors: UInt8[NpArray, "n 3"]
) -> UInt8[NpArray, "h w 3"]:
    """An image under the colors of its classes."""
    blended = np.empty(pixels.shape, np.uint8)
    for rows in stripes(pixels.shape):
        blended[rows] = blend_colors(pixels[rows], colors[labels[rows]])
    return blended


def blend_colors(
    pixels: UInt8[NpArray, "*b 3"], colors: UInt8[NpArray, "*b 3"]
) -> UInt8[NpArray, "*b 3"]:
    """Pixels under a color each."""
    return ((1 - _OPACITY) * pixels + _OPACITY * colors).round().astype(np.uint8)


def draw_proposals(
    pixels: UInt8[NpArray, "h w 3"],
    masks: Iterable[Bool[NpArray, "h w"]],
    points: Float[NpArray, "k 2"],
) -> UInt8[NpArray, "h w 3"]:
    """An image with the masks' outlines in white and the points (x, y in pixels) in yellow."""
    pixels = pixels.copy()
    pixels[mask_outlines(masks, pixels.shape[:2])] = 255
    return draw_points(pixels, points)


def draw_points(
    pixels: UInt8[NpArray, "h w 3"], points: Float[NpArray, "k 2"]
) -> UInt8[NpArray, "h w 3"]:
    """An image with the points (x, y in pixels) in yellow."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    radius = max(1, min(pixels.shape[:2]) // 160)
    for x, y in points:
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=(255, 255, 0), outline=(0, 0, 0))
    return np.asarray(image)


def mask_outlines(
    masks: Iterable[Bool[NpArray, "h w"]], shape: tuple[int, ...]
) -> Bool[NpArray, "h w"]:
    """Pixels inside a mask whose right or lower neighbor is outside it."""
    edge = np.zeros(shape, bool)
    for mask in masks:
        edge[:, :-1] |= mask[:, :-1] & ~mask[:, 1:]
        edge[:-1] |= mask[:-1] & ~mask[1:]
    return edge


def draw_panel(
    titled: Iterable[tuple[str, UInt8[NpArray, "h w 3"]]],
    entries: Sequence[tuple[str, tuple[int, ...]]],
) -> Image.Image:
    """Images of one size side by side under their titles, and below them a legend.

    Small images are enlarged. An empty title takes no room.

    Args:
        titled: a title and an image.
        entries: a text and an RGB color for each line of the legend.
    """
    titles, images = zip(*titled, strict=True)
    scale = max(1, _SMALL // max(images[0].shape[:2]))
    height, width = (side * scale for side in images[0].shape[:2])
    caption, step = _CAPTION if any(titles) else 0, width + _GAP
    panel = Image.new("RGB", (step * len(images) - _GAP, height + caption), "white")
    draw = ImageDraw.Draw(panel)
    for column, (title, pixels) in enumerate(zip(titles, images, strict=True)):
        draw.text((column * step + 2, 1), title, fill="black")
        shown = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        panel.paste(shown, (column * step, caption))
    return _with_legend(panel, entries)


def _with_legend(panel: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """The entries below a panel, in as many lines as they need."""
    measure = ImageDraw.Draw(panel)
    places, left, top = [], 0, panel.height + _GAP
    for text, _ in entries:
        width = int(measure.textlength(text)) + 2 * _LINE
        if left and left + width > panel.width:
            left, top = 0, top + _LINE
        places.append((left, top))
        left += width
    canvas = Image.new("RGB", (panel.width, top + _LINE), "white")
    canvas.paste(panel, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for (text, color), (left, top) in zip(entries, places, strict=True):
        side = _LINE - 5
        draw.rectangle((left, top, left + side, top + side), fill=color, outline="black")
        draw.text((left + _LINE, top), text, fill="black")
    return canvas


def draw_curves(records: Sequence[dict[str, Any]], file: AnyPath) -> None:
    """Write a PNG with a panel for every loss and every mIoU in the records of a log."""
    names = sorted({name for record in records for name in record if _is_drawn(name)})
    if not names:  # the log was deleted
        return
    image = Image.new("RGB", (WIDTH, HEIGHT * len(names)), "white")
    draw = ImageDraw.Draw(image)
    for row, name in enumerate(names):
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_curve(draw, row * HEIGHT, name, points)
    write_image(file, image)


def _is_drawn(name: str) -> bool:
    return name.endswith("loss") or name.partition("/")[0] == "miou"


def _draw_curve(
    draw: ImageDraw.ImageDraw, top: int, name: str, points: Sequence[tuple[int, float]]
) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    left, right = MARGIN, WIDTH - MARGIN // 2
    high, low = top + MARGIN // 2, top + HEIGHT - MARGIN // 2

    def place(step: int, value: float) -> tuple[float, float]:
        across = (step - min(steps)) / max(max(steps) - min(steps), 1)
        up = (value - min(values)) / ((max(values) - min(values)) or 1.0)
        return left + across * (right - left), low - up * (low - high)

    draw.rectangle((left, high, right, low), outline=_INK)
    draw.text((left, top + 6), name, fill=_INK)
    draw.text((4, high), f"{max(values):.4g}", fill=_INK)
    draw.text((4, low - 12), f"{min(values):.4g}", fill=_INK)
    draw.text((left, low + 6), f"step {min(steps)}", fill=_INK)
    draw.text((right, low + 6), f"{max(steps)}", fill=_INK, anchor="ra")
    draw.line([place(*point) for point in points], fill=_CURVE, width=2)
