"""Views of one square canvas, overlapping windows and a global view, and stitching their maps.

CAT-Seg cuts an image into windows and adds the whole image as one more view (docs/catseg.md part
f). A map at any resolution that is a multiple of the cost map's cells can be stitched the same way.
"""

from dataclasses import dataclass
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float


@dataclass(frozen=True)
class ViewLayout:
    """Windows along a side, in cells of the cost map. One window is the canvas itself.

    A stride need not be whole cells: such windows are cut and stitched at a resolution where it is
    whole pixels, as CAT-Seg does.
    """

    window: int  # cells along a window's side
    stride: Fraction | int = 0
    num_windows: int = 1  # along a side

    def side(self, scale: int) -> int:
        """The canvas's side at ``scale`` pixels a cell.

        Raises:
            SammiError: the stride is not whole pixels there.
        """
        side = (self.window + (self.num_windows - 1) * Fraction(self.stride)) * scale
        if Fraction(self.stride) * scale % 1:
            raise SammiError(
                f"windows {self.stride} cells apart do not meet at {scale} pixels a cell"
            )
        return int(side)

    @property
    def canvas(self) -> int:
        """Cells along the canvas's side. Raises as `side`."""
        return self.side(1)

    @property
    def in_cells(self) -> bool:
        """Whether windows lie whole cells apart."""
        return Fraction(self.stride).denominator == 1

    @property
    def has_global_view(self) -> bool:
        """Whether the whole canvas is another view, beside the windows."""
        return self.num_windows > 1

    @property
    def num_views(self) -> int:
        """Windows and global view."""
        return self.num_windows**2 + self.has_global_view

    def corners(self, scale: int) -> list[tuple[int, int]]:
        """Top-left corners (row, column) of the windows, row-major, at ``scale`` pixels a cell."""
        last = self.side(scale) - self.window * scale
        starts = [i * last // max(1, self.num_windows - 1) for i in range(self.num_windows)]
        return [(row, column) for row in starts for column in starts]

    def coverage(self, scale: int) -> np.ndarray:
        """How many windows cover each pixel ``[canvas*scale, canvas*scale]``."""
        count = np.zeros((self.side(scale),) * 2, np.float32)
        side = self.window * scale
        for row, column in self.corners(scale):
            count[row : row + side, column : column + side] += 1
        return count


def cut_windows(
    canvas: Float[Array, "b h w c"], layout: ViewLayout, scale: int
) -> Float[Array, "b v side side c"]:
    """The windows of a canvas whose resolution is ``scale`` pixels a cell (no global view)."""
    side = layout.window * scale
    windows = [canvas[:, y : y + side, x : x + side] for y, x in layout.corners(scale)]
    return jnp.stack(windows, axis=1)


def stitch(maps: Float[Array, "b v h w c"], layout: ViewLayout) -> Float[Array, "b h2 w2 c"]:
    """One canvas from the maps of all views, windows and global view averaged.

    Windows that overlap are averaged uniformly; the global view, resized to the canvas, then
    counts one half (docs/catseg.md part f, step 6).
    """
    if not layout.has_global_view:
        return maps[:, 0]
    side = maps.shape[2]
    scale = side // layout.window
    canvas_side = layout.side(scale)
    total = jnp.zeros((maps.shape[0], canvas_side, canvas_side, maps.shape[-1]), maps.dtype)
    for view, (y, x) in enumerate(layout.corners(scale)):
        total = total.at[:, y : y + side, x : x + side].add(maps[:, view])
    local = total / layout.coverage(scale)[None, :, :, None]
    return (local + resize(maps[:, -1], (canvas_side, canvas_side))) / 2


def cut_masks(masks: Bool[Array, "b n h w"], layout: ViewLayout) -> Bool[Array, "b v n h2 w2"]:
    """The part of the canvas's masks in each view; the global view is resampled."""
    if not layout.has_global_view:
        return masks[:, None]
    scale = masks.shape[-1] // layout.canvas
    side = layout.window * scale
    windows = [masks[:, :, y : y + side, x : x + side] for y, x in layout.corners(scale)]
    whole = resize(masks[..., None].astype(jnp.float32), (side, side))[..., 0] >= 0.5
    return jnp.stack([*windows, whole], axis=1)
