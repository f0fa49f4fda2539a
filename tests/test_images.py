import math
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from sammi_jax.config.model import SegmenterConfig, SlidingConfig
from sammi_jax.errors import SammiError
from sammi_jax.images import crop_square, load_image, resize_short_side, short_side_shape
from sammi_jax.inference.inputs import sam_input, segmenter_input


@pytest.fixture
def colors(rng):
    return rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)


def test_rgba_gray_palette_and_cmyk_become_rgb(tmp_path, colors):
    rgb = Image.fromarray(colors)
    rgba = rgb.convert("RGBA")
    rgba.putalpha(40)
    rgba.save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(load_image(tmp_path / "rgba.png"), colors)
    rgb.convert("L").save(tmp_path / "gray.png")
    gray = load_image(tmp_path / "gray.png")
    assert gray.shape == (7, 9, 3)
    assert (gray[..., 0] == gray[..., 2]).all()
    rgb.convert("P").save(tmp_path / "palette.png")
    expected = np.asarray(Image.open(tmp_path / "palette.png").convert("RGB"))
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), expected)
    assert load_image(rgb.convert("CMYK")).shape == (7, 9, 3)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(load_image(tmp_path / "wide.png")[0, :, 1], [0, 1, 128, 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], "f"), [0, 128, 255]),
        (np.array([[0, 100.4, 255]], "f"), [0, 100, 255]),
        (np.array([[0, 257, 65535]], "f"), [0, 1, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
    ],
)
def test_float_and_int32_images_are_scaled_by_their_range(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif")[0, :, 1], expected)


@pytest.mark.parametrize("value", [-1.0, 70000.0, np.nan, np.inf])
def test_values_in_no_known_range_are_refused(tmp_path, value):
    Image.fromarray(np.array([[0, value, 3]], "f")).save(tmp_path / "a.tif")
    with pytest.raises(SammiError, match=r"a\.tif: its values go from .* to .*; scale them"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 3000]], np.uint16), 12),
        (np.array([[0, 9]], np.uint16), 0),
        (np.array([[0, 1.004]], "f"), 1),
        (np.array([[0, 15]], np.int32), 15),
    ],
)
def test_an_image_that_is_nearly_black_gives_a_warning(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "dark.tif")
    with pytest.warns(UserWarning, match=r"dark\.tif: its largest value, .* is nearly black"):
        assert load_image(tmp_path / "dark.tif")[0, 1, 0] == expected


def test_exif_orientation_is_applied(tmp_path, colors):
    image = Image.fromarray(colors)
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), np.rot90(colors, -1))


def test_unreadable_files_name_the_culprit(tmp_path, colors):
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(colors).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").touch()
    for name, words in [
        ("text.png", "is no image"),
        ("cut.jpg", "cannot be decoded"),
        ("empty.png", "is an empty file"),
        ("none.png", "no such file"),
    ]:
        with pytest.raises(SammiError, match=f"{name}.*{words}") as error:
            load_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(SammiError, match="is a folder; name the images in it"):
        load_image(tmp_path)


def test_whatever_a_decoder_raises_is_the_image_s_line(tmp_path, colors, monkeypatch):
    Image.fromarray(colors).save(tmp_path / "a.png")
    for error in (ZeroDivisionError("a rational"), KeyError(0x9286), MemoryError(), TypeError("x")):
        monkeypatch.setattr(Image.Image, "getexif", Mock(side_effect=error))
        with pytest.raises(SammiError, match=r"a\.png: cannot be decoded \(.+\)") as raised:
            load_image(tmp_path / "a.png")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_no_side_becomes_zero(size):
    image = np.full((*size, 3), 7, np.uint8)
    padded, inside = sam_input(image, 64)
    height, width = inside.astype(int)
    assert min(height, width) >= 1
    assert (padded[:height, :width] == 7).all()
    assert resize_short_side(image).shape[:2] == short_side_shape(*size, 640)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 2), (4,)])
def test_arrays_that_are_no_images(shape):
    with pytest.raises(SammiError, match="image array"):
        load_image(np.zeros(shape, np.uint8))
    with pytest.raises(SammiError, match="float64"):
        load_image(np.zeros((4, 4, 3)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (640, 853)), ((100, 1000), (256, 2560)), ((1, 1), (640, 640))],
)
def test_short_side_rule(size, expected):
    assert resize_short_side(np.zeros((*size, 3), np.uint8)).shape[:2] == expected


def test_short_side_shape_without_a_limit():
    assert short_side_shape(1467, 2200, 512) == (512, 768)
    assert short_side_shape(2200, 1467, 512) == (768, 512)
    assert short_side_shape(100, 1000, 512) == (256, 2560)
    assert short_side_shape(100, 1000, 512, long=math.inf) == (512, 5120)


def test_a_crop_beyond_the_border_is_filled():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert crop_square(array, 1, 1, 2, 99).tolist() == [[5, 6], [9, 10]]
    assert crop_square(array, 2, 3, 2, 99).tolist() == [[11, 99], [99, 99]]
    assert crop_square(np.stack([array] * 3, -1), 0, 0, 4, 99)[3].tolist() == [[99] * 3] * 4


def test_sam_input_keeps_the_aspect_and_pads_with_zeros():
    padded, size = sam_input(np.full((50, 100, 3), 9, np.uint8), 64)
    np.testing.assert_array_equal(size, [32, 64])
    assert (padded[:32] == 9).all()
    assert (padded[32:] == 0).all()


def test_plain_mode_pads_with_the_mean_color(colors):
    config = SegmenterConfig(sliding=None)
    canvas = segmenter_input(colors, config).canvas
    assert canvas.shape == (1, 384, 384, 3)
    np.testing.assert_allclose(
        canvas[0, -1, -1], [122.7709383, 116.7460125, 104.09373615], rtol=1e-6
    )


def test_sliding_mode_gives_canvas_and_overview(colors):
    config = SegmenterConfig(sliding=SlidingConfig())
    inputs = segmenter_input(colors, config)
    assert inputs.canvas.shape == (1, 640, 640, 3)
    assert inputs.overview.shape == (1, 384, 384, 3)
    assert inputs.sam_image is None
