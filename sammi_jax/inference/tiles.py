"""Large images as overlapping tiles, of which each pixel takes the answer of the nearest center."""

from collections.abc import Iterator
from dataclasses import dataclass

from sammi_jax.errors import SammiError


@dataclass(frozen=True)
class Tile:
    """One tile of an image, and the part of it whose labels are kept.

    Attributes:
        rows: of the image that the network sees, and
        columns: likewise.
        kept_rows: of the image that take this tile's labels, and
        kept_columns: likewise.
    """

    rows: slice
    columns: slice
    kept_rows: slice
    kept_columns: slice

    @property
    def inner(self) -> tuple[slice, slice]:
        """The kept part, counted from the tile's own corner."""
        return (
            slice(self.kept_rows.start - self.rows.start, self.kept_rows.stop - self.rows.start),
            slice(
                self.kept_columns.start - self.columns.start,
                self.kept_columns.stop - self.columns.start,
            ),
        )


@dataclass(frozen=True)
class TileGrid:
    """Square tiles on a fixed grid, so that the same pixels get the same labels in any extent.

    The grid does not depend on the image's size: a larger picture of the same place, with the
    same ``origin`` on the ground, is cut at the same places. Only tiles that would leave the image
    are moved inside, which changes labels within one tile of the border.

    Attributes:
        side: of a tile, in pixels.
        overlap: pixels that neighbors share.
        origin: (row, column) of a point, inside the image or not, where a tile begins.

    Raises:
        SammiError: no side, or an overlap that leaves nothing of a tile.
    """

    side: int
    overlap: int
    origin: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.side < 1:
            raise SammiError(f"tile side {self.side}: give at least 1 pixel")
        if not 0 <= self.overlap < self.side:
            raise SammiError(
                f"tile overlap {self.overlap}: give 0 or more, and less than the side {self.side}"
            )

    def cover(self, size: tuple[int, int]) -> Iterator[Tile]:
        """Tiles that together give every pixel of an image of (height, width) a label, once."""
        spans = [
            list(self._spans(length, origin))
            for length, origin in zip(size, self.origin, strict=True)
        ]
        for rows, kept_rows in spans[0]:
            for columns, kept_columns in spans[1]:
                yield Tile(rows, columns, kept_rows, kept_columns)

    def _spans(self, length: int, origin: int) -> Iterator[tuple[slice, slice]]:
        """What each tile covers and keeps along one axis."""
        if length <= self.side:
            yield slice(0, length), slice(0, length)
            return
        stride = self.side - self.overlap
        margin = self.overlap // 2
        start = origin % stride
        start -= -(-(start + margin) // stride) * stride  # the tile that keeps the first pixel
        while start + margin < length:
            low, high = max(0, start + margin), min(length, start + margin + stride)
            inside = min(max(start, 0), length - self.side)
            yield slice(inside, inside + self.side), slice(low, high)
            start += stride
