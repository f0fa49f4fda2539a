"""Images, labels, and what else holds pixels."""

import io
import json
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from hypothesis import strategies as st
from PIL import Image

from sammi_jax.data.prepare import labels
from sammi_jax.data.prepare.labels import READERS
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.sources import FolderSource
from sammi_jax.images import load_image
from sammi_jax.inference.geotiff import read_geotiff
from sammi_jax.serve.limits import Limits, read_image
from tests.fuzz.guard import check
from tests.fuzz.mutate import hostile_json, mutated
from tests.fuzz.target import Target, file_target, write

_RNG = np.random.default_rng(0)
_PIXELS = _RNG.integers(0, 256, (9, 11, 3), np.uint8)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@cache
def _seeds() -> dict[str, list[bytes]]:
    """Valid small images of every format and mode that is promised."""
    rgb, gray = Image.fromarray(_PIXELS), Image.fromarray(_PIXELS[..., 0])
    deep = Image.fromarray(_RNG.integers(0, 65536, (9, 11), np.uint16))
    modes = [
        rgb,
        gray,
        deep,
        rgb.convert("P"),
        rgb.convert("RGBA"),
        gray.convert("1"),
        gray.convert("LA"),
    ]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    float32 = Image.fromarray(_PIXELS[..., 0].astype(np.float32))
    png = [_encoded(image, "PNG") for image in modes]
    png += [
        _encoded(rgb, "PNG", exif=exif, dpi=(72, 72)),
        _encoded(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
    ]
    tiff = [_encoded(image, "TIFF") for image in [*modes, float32, rgb.convert("CMYK")]]
    tiff += [
        _encoded(rgb, "TIFF", compression=c)
        for c in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    ]
    jpeg = [
        _encoded(rgb, "JPEG", exif=exif),
        _encoded(gray, "JPEG"),
        _encoded(rgb.convert("CMYK"), "JPEG"),
        _encoded(rgb, "JPEG", progressive=True),
    ]
    others = [_encoded(rgb, form) for form in ("BMP", "GIF", "WEBP", "JPEG2000", "PPM")]
    others += [
        _encoded(rgb, "WEBP", lossless=True, exif=exif),
        _encoded(rgb.convert("P"), "BMP"),
        _encoded(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
    ]
    strange = [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
        b"(canary) (w) file closefile\n",
        b"<VRTDataset rasterXSize='2' rasterYSize='2'></VRTDataset>",
        _encoded(rgb, "EPS"),
        _encoded(rgb, "PDF"),
        _encoded(rgb, "ICO"),
        _encoded(rgb, "TGA"),
    ]
    return {"png": png, "tiff": tiff, "jpeg": jpeg, "other": others, "strange": strange}


def _all() -> list[bytes]:
    return [data for group in _seeds().values() for data in group]


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


_SIZES = (0, 1, 2, 9, 255, 4000, 20_000, 65_535, 10**6, 2**31 - 1, 2**31, 2**32 - 1)


@st.composite
def _pngs(draw: st.DrawFn) -> bytes:
    """PNG files with valid sums: heads that declare any size, chunks that unpack to a lot."""
    size = [draw(st.sampled_from(_SIZES)) for _ in range(2)]
    depth, color = (
        draw(st.sampled_from([1, 2, 4, 8, 16])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1])),
    )
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, draw(st.integers(0, 1)))
    parts = [_chunk(b"IHDR", head)]
    bomb = zlib.compress(bytes(draw(st.sampled_from([10, 1000, 2 * 10**6]))))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(
            st.sampled_from(
                [
                    b"PLTE",
                    b"tRNS",
                    b"zTXt",
                    b"iTXt",
                    b"tEXt",
                    b"iCCP",
                    b"eXIf",
                    b"acTL",
                    b"fcTL",
                    b"fdAT",
                    b"gAMA",
                    b"pHYs",
                    b"IDAT",
                    b"IEND",
                    b"cHRM",
                ]
            )
        )
        content = draw(
            st.one_of(
                st.binary(max_size=40),
                st.just(b"a\0\0" + bomb),
                st.just(b"a\0\1\0\0\0" + bomb),
                st.just(b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 40),
            )
        )
        parts.append(_chunk(kind, content))
    parts += [_chunk(b"IDAT", bomb), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@st.composite
def _tiffs(draw: st.DrawFn) -> bytes:
    """TIFF files whose tags say anything."""
    tags = {
        256: (4, 1, 4),
        257: (4, 1, 4),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        277: (3, 1, 1),
        278: (4, 1, 4),
        279: (4, 1, 16),
    }
    for _ in range(draw(st.integers(0, 5))):
        tag = draw(
            st.one_of(
                st.sampled_from(
                    [
                        *tags,
                        254,
                        274,
                        284,
                        317,
                        320,
                        322,
                        323,
                        324,
                        325,
                        338,
                        339,
                        347,
                        530,
                        33550,
                        33922,
                        34665,
                        34735,
                        34853,
                        42113,
                    ]
                ),
                st.integers(0, 65535),
            )
        )
        number = draw(
            st.sampled_from(
                [
                    0,
                    1,
                    2,
                    3,
                    5,
                    6,
                    7,
                    8,
                    9,
                    16,
                    32,
                    64,
                    32773,
                    34712,
                    50000,
                    65535,
                    10**6,
                    2**31,
                    2**32 - 1,
                ]
            )
        )
        tags[tag] = (
            draw(st.integers(0, 18)),
            draw(st.sampled_from([0, 1, 1, 1, 2, 3, 100, 2**28, 2**32 - 1])),
            number,
        )
    entries = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(tags.items()))
    again = draw(st.sampled_from([0, 0, 24, 8]))
    return (
        struct.pack("<2sHI", b"II", 42, 24)
        + bytes(range(16))
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", again)
        + draw(st.binary(max_size=64))
    )


def _read_image(path: Path) -> Any:
    pixels = load_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    return pixels


@cache
def _geotiffs() -> list[bytes]:
    import rasterio
    from rasterio.io import MemoryFile

    found = []
    place = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    for dtype, count, extra in (
        ("uint8", 3, {"compress": "deflate"}),
        ("uint16", 1, {"nodata": 0}),
        ("float32", 3, {}),
        ("uint8", 1, {"photometric": "palette"}),
        ("uint8", 4, {"tiled": True, "blockxsize": 16, "blockysize": 16}),
    ):
        with MemoryFile() as file:
            with file.open(
                driver="GTiff",
                width=20,
                height=17,
                count=count,
                dtype=dtype,
                crs="EPSG:32632",
                transform=place,
                **extra,
            ) as out:
                values = _RNG.integers(0, 200, (count, 17, 20)).astype(dtype)
                out.write(values)
                if extra.get("photometric"):
                    out.write_colormap(1, {i: (i, 0, 255 - i) for i in range(256)})
            found.append(file.read())
    return found


_VRT = b"""<VRTDataset rasterXSize="9" rasterYSize="9"><SRS>EPSG:4326</SRS>
<GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>/vsicurl/http://127.0.0.1:9/a.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


def _pair(folder: Path, *names: str) -> Pair:
    return Pair("a", folder / "a.png", tuple(folder / name for name in names))


def _read_labels(case: tuple[str, bytes], folder: Path) -> Any:
    """A label file by one of the readers."""
    kind, content = case
    name = "7.Bird/a_labelIds.png"
    write(folder, {name: content, "7.Bird/a_invGray.png": _seeds()["png"][1]})

    def read() -> Any:
        label = READERS[kind](_pair(folder, name), 0)
        assert label.ndim == 2
        assert label.dtype.kind in "iu"
        return label

    return check(read, str(folder))


@st.composite
def _labels(draw: st.DrawFn) -> tuple[str, bytes]:
    kinds = [kind for kind in READERS if kind not in ("mat", "stack", "coco_rle")]
    contents = st.one_of(mutated(_all()), _pngs(), _tiffs())
    return draw(st.sampled_from(kinds)), draw(contents)


@cache
def _mats() -> list[bytes]:
    found = []
    label = _RNG.integers(0, 459, (6, 7)).astype(np.uint16)
    for name, value, options in (
        ("LabelMap", label, {"do_compression": True}),
        ("LabelMap", label.astype(float), {}),
        ("Other", label, {}),
        ("LabelMap", label, {"format": "4"}),
        ("LabelMap", {"a": label, "b": "text"}, {}),
        ("LabelMap", np.array([label, "x"], dtype=object), {"do_compression": True}),
        ("LabelMap", scipy.sparse.csc_matrix(label.astype(float)), {}),
        ("LabelMap", label + 1j, {}),
        ("LabelMap", "text", {}),
    ):
        file = io.BytesIO()
        scipy.io.savemat(file, {name: value}, **options)
        found.append(file.getvalue())
    return found


def _stacks() -> list[bytes]:
    found = []
    for array in (
        np.ones((3, 4, 5), bool),
        np.ones((2, 2), np.float32),
        np.ones((1, 2, 3), np.int64),
    ):
        file = io.BytesIO()
        np.save(file, array)
        found.append(file.getvalue())
    file = io.BytesIO()
    np.savez_compressed(file, np.zeros((3, 4, 5)))
    found.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object))
    return [*found, file.getvalue(), found[0].replace(b"(3, 4, 5), }", b"(9999999999, 4, 5),}")]


_CONTEXT = {
    "images": [{"file_name": "a.jpg", "image_id": 1, "height": 4, "width": 5, "phase": "val"}],
    "annos_segmentation": [
        {"image_id": 1, "category_id": 3, "segmentation": {"size": [4, 5], "counts": [3, 4, 13]}},
        {"image_id": 1, "category_id": 2, "segmentation": {"size": [4, 5], "counts": "34="}},
    ],
}


@st.composite
def _contexts(draw: st.DrawFn) -> bytes:
    content = json.loads(json.dumps(_CONTEXT))
    if draw(st.booleans()):
        counts = draw(
            st.one_of(
                st.text(max_size=20),
                st.just("o" * 200_000),
                st.lists(st.integers(-3, 30), max_size=6),
            )
        )
        content["annos_segmentation"][1]["segmentation"]["counts"] = counts
    return draw(hostile_json([content]))


def _read_indexed(kind: str) -> Any:
    def read(path: Path) -> Any:
        for table in (labels._paxray_targets, labels._context_segments):
            table.cache_clear()  # the next case has the same path
        return READERS[kind](_pair(path.parent, path.name), 0)

    return read


def _glance(path: Path) -> Any:
    source = FolderSource(path.parent, [Pair("a", path, (path,))])
    return source.glance(0)


def _serve(case: bytes, folder: Path) -> Any:
    limits = Limits(upload_bytes=10**6, pixels=10**6)
    return check(lambda: read_image(case, limits), "the image")


TARGETS = [
    file_target(
        "png", "a.png", lambda: st.one_of(mutated(_seeds()["png"]), _pngs()), _read_image, 10_000
    ),
    file_target(
        "tiff", "a.tif", lambda: st.one_of(mutated(_seeds()["tiff"]), _tiffs()), _read_image, 8000
    ),
    file_target("jpeg", "a.jpg", lambda: mutated(_seeds()["jpeg"]), _read_image, 5000),
    file_target(
        "image",
        "a.img",
        lambda: mutated(_seeds()["other"] + _seeds()["strange"]),
        _read_image,
        8000,
    ),
    file_target(
        "geotiff",
        "a.tif",
        lambda: st.one_of(mutated([*_geotiffs(), _VRT]), _tiffs()),
        read_geotiff,
        4000,
    ),
    file_target("glance", "a.png", lambda: st.one_of(mutated(_all()), _pngs()), _glance, 2000),
    file_target("mat", "a.mat", lambda: mutated(_mats()), _read_indexed("mat"), 3000),
    file_target(
        "stack",
        "a.npy",
        lambda: mutated(_stacks()),
        lambda path: _read_indexed("stack")(path.with_name("paxray.json")),
        2500,
        lambda: {"paxray.json": b'{"test": [{"image": "a.png", "target": "a.npy"}]}'},
    ),
    file_target(
        "stack_index",
        "paxray.json",
        lambda: hostile_json([{"test": [{"image": "a.png", "target": "a.npy"}]}]),
        _read_indexed("stack"),
        2000,
        lambda: {"a.npy": _stacks()[0]},
    ),
    file_target("coco_rle", "trainval_merged.json", _contexts, _read_indexed("coco_rle"), 3000),
    Target("labels", _labels, _read_labels, 6000),
    Target("serve_image", lambda: st.one_of(mutated(_all()), _pngs(), _tiffs()), _serve, 3000),
]
