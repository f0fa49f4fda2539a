"""GeoTIFF in and out, where ``rasterio`` is installed: pixels keep their place on the ground."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sammi_jax.errors import SammiError, reading
from sammi_jax.files import write_atomic
from sammi_jax.images import to_bytes
from sammi_jax.object_store import AnyPath
from sammi_jax.typing import Bool, Int, NpArray, UInt8

_SUFFIXES = (".tif", ".tiff")
# Bytes of an image in memory, as its header says. Without these bounds a small file could declare
# any size: what is compressed unpacks to at most a thousand times its size.
_MOST_BYTES = 2**31
_MOST_UNPACKED = 2000
_FREE_BYTES = 2**26


@dataclass(frozen=True)
class GeoImage:
    """A georeferenced image.

    Attributes:
        pixels: uint8 RGB ``[H, W, 3]``: the file's first three bands, or its one in the colors of
            its palette or as gray.
        valid: bool ``[H, W]``, False where the file says that there is no data.
        crs: its coordinate reference system.
        transform: from pixels to coordinates (affine).
    """

    pixels: UInt8[NpArray, "h w 3"]
    valid: Bool[NpArray, "h w"]
    crs: Any
    transform: Any

    @property
    def origin(self) -> tuple[int, int]:
        """(row, column) of the point of coordinates (0, 0): the same in every cut of one mosaic."""
        inverse = ~self.transform
        return round(inverse.f), round(inverse.c)

    def write_labels(self, labels: Int[NpArray, "h w"], num_classes: int, path: AnyPath) -> None:
        """Write a label map as a compressed GeoTIFF in this image's place, atomically.

        Pixels without data get the type's largest value, which the file names as such.
        """
        from rasterio.io import MemoryFile

        dtype = np.uint8 if num_classes < np.iinfo(np.uint8).max else np.uint16
        nodata = int(np.iinfo(dtype).max)
        profile = {
            "driver": "GTiff", "height": labels.shape[0], "width": labels.shape[1], "count": 1,
            "dtype": dtype, "nodata": nodata, "crs": self.crs, "transform": self.transform,
            "compress": "deflate", "tiled": True,
        }  # fmt: skip
        # Made in memory: GDAL may close a file without noticing that the disk is full.
        with MemoryFile() as memory:
            with memory.open(**profile) as file:
                file.write(np.where(self.valid, labels, nodata).astype(dtype), 1)
            write_atomic(path, memory.read())


def read_geotiff(path: str | Path) -> GeoImage | None:
    """A TIFF with a place on the ground; None for other files, and without ``rasterio``.

    Bands of more than 8 bits are scaled as `images.to_bytes` does.

    Raises:
        SammiError: the file is damaged, or has values in no known range.
    """
    if Path(path).suffix.lower() not in _SUFFIXES or find_spec("rasterio") is None:
        return None
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    if not Path(path).is_file():
        return None  # the reader of all images says so
    with reading(path, "export it again", "cannot be read as a GeoTIFF"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            # No other driver: some of GDAL's open files and addresses that a file names.
            with rasterio.open(path, driver="GTiff") as file:
                if file.crs is None and file.transform.is_identity:
                    return None
                chosen = [1, 2, 3] if file.count >= 3 else [1]
                _check_size(file, chosen, Path(path))
                bands = file.read(chosen)
                if file.count == 1 and file.colorinterp[0].name == "palette":
                    colors = np.zeros((256, 3), np.uint8)
                    for value, color in file.colormap(1).items():
                        colors[value] = color[:3]
                    bands = np.moveaxis(colors[bands[0]], -1, 0)
                valid = file.dataset_mask() > 0
                place = file.crs, file.transform
        if bands.dtype != np.uint8:
            bands = to_bytes(np.where(valid, bands, 0), str(path))
    pixels = np.repeat(bands, 3, axis=0) if len(bands) == 1 else bands
    return GeoImage(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), valid, *place)


def _check_size(file: Any, bands: list[int], path: Path) -> None:
    width = sum(np.dtype(file.dtypes[band - 1]).itemsize for band in bands)
    size = file.width * file.height * width
    if size > min(_MOST_BYTES, _FREE_BYTES + _MOST_UNPACKED * path.stat().st_size):
        raise SammiError(
            f"{path}: declares {file.width} x {file.height} pixels, {size / 1e9:.3g} GB: more than "
            f"such a file can hold, or more than {_MOST_BYTES / 1e9:.3g} GB; cut it into parts"
        )
