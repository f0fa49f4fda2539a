"""WorldFloods' images: three of the thirteen bands of Sentinel-2 as uint8 RGB."""

from pathlib import Path

import numpy as np

from sammi_jax.errors import SammiError, one_line
from sammi_jax.typing import NpArray

_BANDS = 13
_INFRARED_RED_GREEN = (7, 3, 1)  # the bands that MESS uses as RGB; the last is in fact blue
# Mean plus one standard deviation of each of the three bands becomes 255. The statistics are those
# of the data set's authors.
_FULL = np.array(
    [3981.96268494 + 2500.47885249, 3418.90147615 + 2811.78109878, 3758.07467509 + 2794.09579088],
    np.float32,
)


def read_sentinel(path: Path) -> NpArray:
    """uint8 ``[H, W, 3]`` of a TIFF with 13 bands, the first or the last axis.

    Raises:
        SammiError: tifffile is not installed, or the file is no such TIFF.
    """
    try:
        import tifffile  # pyright: ignore[reportMissingImports]  (optional)
    except ImportError as error:
        raise SammiError(
            f"{path}: has {_BANDS} bands, which needs tifffile: pip install tifffile imagecodecs"
        ) from error
    try:
        bands = np.asarray(tifffile.imread(path))
    except Exception as error:  # its codecs raise many kinds of errors
        raise SammiError(f"{path}: cannot be decoded ({one_line(error)})") from error
    if bands.ndim == 3 and bands.shape[0] == _BANDS:
        bands = bands.transpose(1, 2, 0)
    if bands.ndim != 3 or bands.shape[-1] != _BANDS:
        raise SammiError(f"{path}: shape {bands.shape}, not {_BANDS} bands of one image")
    chosen = bands[..., _INFRARED_RED_GREEN].astype(np.float32) / _FULL
    return (np.clip(chosen, 0, 1) * 255).astype(np.uint8)
