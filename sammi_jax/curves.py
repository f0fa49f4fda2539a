"""Curves of a run's losses and validation scores as one picture, from its log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 800, 240, 56  # of one curve's panel, in pixels
_INK, _CURVE = (40, 40, 40), (31, 119, 180)


def draw_curves(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a PNG with a panel for every loss and every mIoU in the records of a log."""
    names = sorted({name for record in records for name in record if _is_drawn(name)})
    if not names:  # the log was deleted
        return
    image = Image.new("RGB", (WIDTH, HEIGHT * len(names)), "white")
    draw = ImageDraw.Draw(image)
    for row, name in enumerate(names):
        points = [(record["step"], record[name]) for record in records if name in record]
        _draw_panel(draw, row * HEIGHT, name, points)
    image.save(file)


def _is_drawn(name: str) -> bool:
    return name.endswith("loss") or name.partition("/")[0] == "miou"


def _draw_panel(
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
