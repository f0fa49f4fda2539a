"""Label files in their owners' formats become the train ids of the reference preparation."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import scipy.io
from PIL import Image

from sammi_jax.data.prepare.examples import make_examples
from sammi_jax.data.prepare.known_sets import LAYOUTS, get_layout
from sammi_jax.data.prepare.labels import READERS, LabelMap, read_index
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.prepare.pixels import (
    label_from_png,
    png_bytes,
    resize_linear,
    resize_nearest,
    tiles,
)
from sammi_jax.data.vocabulary import get_vocabulary
from sammi_jax.errors import SammiError
from sammi_jax.ops.rle import decode_rle, unpack_runs

VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [7] * 759


def sha(label):
    return hashlib.sha256(label.astype("<u2").tobytes()).hexdigest()


def pair(label, image=None, key="a"):
    return Pair(key, image or label, label if isinstance(label, tuple) else (label,))


def train_ids(name, *labels, key="a"):
    layout = get_layout(name)
    raw = READERS[layout.kind](Pair(key, labels[0], labels), layout.channel)
    return LabelMap(get_vocabulary(name))(raw, str(labels[0]))


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path)
    return path


# --- the reference's results on real files ---


@pytest.fixture
def golden(photographs):
    return json.loads((photographs / "GOLDEN.json").read_text())


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("ade20k_150", "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", None),
        ("ade20k_150", "ADEChallengeData2016/annotations/validation/ADE_val_00000002.png", None),
        ("pascal_voc_20", "voc_labelme/SegmentationClass/2011_000003.png", "pascal_voc_20"),
        ("pascal_voc_20", "voc_labelme/SegmentationClass/2011_000006.png", "pascal_voc_20"),
        ("pascal_voc_20b", "voc_labelme/SegmentationClass/2011_000003.png", "pascal_voc_20b"),
        ("pascal_voc_20b", "voc_labelme/SegmentationClass/2011_000006.png", "pascal_voc_20b"),
        ("mess_suim", "SUIM/TEST/masks/d_r_47_.bmp", None),
        ("mess_suim", "SUIM/TEST/masks/n_l_12_.bmp", None),
    ],
)
def test_equals_the_reference_on_real_files(photographs, golden, name, file, key):
    expected = golden[file][key] if key else golden[file]
    label = train_ids(name, photographs / file)
    assert list(label.shape) == expected["shape"]
    assert label.dtype == expected["dtype"]
    assert sha(label) == expected["sha256_uint16_le"]


def test_ade_full_equals_the_reference_at_both_sizes(photographs, golden):
    folder = "ADE20K_2021_17_01/images/ADE/training/urban/street"
    image = photographs / folder / "ADE_train_00016964.jpg"
    expected = golden[f"{folder}/ADE_train_00016964.jpg"]
    seg = image.with_name("ADE_train_00016964_seg.png")
    assert sha(train_ids("ade20k_847", seg)) == expected["full_resolution"]["sha256_uint16_le"]

    layout, label_map = get_layout("ade20k_847"), LabelMap(get_vocabulary("ade20k_847"))
    (example,) = make_examples(pair(seg, image), layout, label_map)
    assert list(example.label.shape) == expected["prepared_512"]["shape"]
    assert sha(example.label) == expected["prepared_512"]["sha256_uint16_le"]
    pixels = label_from_png(example.image)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected["prepared_image_sha256"]


def test_panoptic_pixels_as_coco_stuff_values(photographs, tmp_path):
    """stuffthingmaps hold id - 1: made here of the panoptic pair, whose ids are the same."""
    folder = photographs / "coco_panoptic"
    colors = np.asarray(Image.open(folder / "panoptic" / "000000142238.png")).astype(int)
    segment = colors @ [1, 256, 65536]
    index = json.loads((folder / "panoptic_examples.json").read_text())
    (found,) = [a for a in index["annotations"] if a["file_name"] == "000000142238.png"]
    raw = np.full(segment.shape, 255, np.uint8)
    things = [s for s in found["segments_info"] if s["category_id"] <= 91]
    for info in things:
        raw[segment == info["id"]] = info["category_id"] - 1
    label = train_ids("coco_stuff_171", save(tmp_path / "a.png", raw))
    names = {1: "person", 37: "sports ball"}
    for category, name in names.items():
        area = sum(s["area"] for s in things if s["category_id"] == category)
        assert area > 0
        assert (label == get_vocabulary("coco_stuff_171").texts.index(name)).sum() == area
    assert (label == 255).sum() == segment.size - sum(s["area"] for s in things)


# --- formats that no real file here has ---


def test_coco_stuff_skips_unused_ids(tmp_path):
    file = save(tmp_path / "a.png", np.array([[0, 11, 12, 181, 255]], np.uint8))
    assert train_ids("coco_stuff_171", file).tolist() == [[0, 255, 11, 170, 255]]


def test_palette_png_gives_indices_not_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2, 20, 255]], np.uint8))
    image.putpalette(VOC_PALETTE)
    image.save(tmp_path / "a.png")
    assert train_ids("pascal_voc_20b", tmp_path / "a.png").tolist() == [[20, 0, 1, 19, 255]]


def test_sixteen_bits_png_and_tiff(tmp_path):
    values = np.array([[0, 300, 65535]], np.uint16)
    for suffix in ("png", "tif"):
        assert read_index(save(tmp_path / f"a.{suffix}", values)).tolist() == values.tolist()


def test_mat(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"LabelMap": np.array([[1, 431, 459, 0]], np.uint16)})
    label = train_ids("pascal_context_459", tmp_path / "a.mat")
    assert (label.tolist(), label.dtype) == ([[0, 430, 458, 459]], np.uint16)
    assert get_vocabulary("pascal_context_459").texts[430] == "unknown"
    scipy.io.savemat(tmp_path / "b.mat", {"Other": np.zeros((2, 2))})
    with pytest.raises(SammiError, match=r"b\.mat: holds no LabelMap"):
        train_ids("pascal_context_459", tmp_path / "b.mat")


def pack_runs(runs):
    """An independent encoder: five bits a character, differences from the fourth run on."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text


def runs_of(mask):
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return ([0] if flat[0] else []) + runs


def test_runs(rng):
    assert list(unpack_runs("0")) == [0]
    for density in (0.02, 0.5, 0.999):
        mask = rng.random((37, 53)) < density
        runs = runs_of(mask)
        for counts in (runs, pack_runs(runs), pack_runs(runs).encode()):
            found = decode_rle({"size": [37, 53], "counts": counts}, "x")
            np.testing.assert_array_equal(found, mask)
    with pytest.raises(SammiError, match="covers 5 pixels, not 2 x 3"):
        decode_rle({"size": [2, 3], "counts": [2, 3]}, "x")


def test_a_string_that_pycocotools_wrote():
    counts = "f9X1d00000ROF::FF::FF::FF::d000000000000000V`3"
    mask = np.zeros((60, 80), bool)
    mask[10:50, 5:20] = True
    mask[20:30, 8:12] = False
    np.testing.assert_array_equal(decode_rle({"size": [60, 80], "counts": counts}, "x"), mask)


def test_context_59_paints_in_order(tmp_path):
    first, second = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    first[:, :3], second[2:, 2:] = True, True
    other = np.zeros((4, 5), bool)
    other[0, 4] = True

    def segment(mask, category, packed):
        runs = runs_of(mask)
        counts = pack_runs(runs) if packed else runs
        return {
            "image_id": 7,
            "category_id": category,
            "segmentation": {"size": [4, 5], "counts": counts},
        }

    index = {
        "images": [{"image_id": 7, "file_name": "a.jpg", "height": 4, "width": 5, "phase": "val"}],
        "annos_segmentation": [
            segment(first, 2, True),
            segment(second, 9, False),
            segment(other, 459, True),
        ],
    }
    (tmp_path / "trainval_merged.json").write_text(json.dumps(index))
    expected = np.full((4, 5), 255)
    expected[first], expected[second] = 0, 1
    label = train_ids("pascal_context_59", tmp_path / "trainval_merged.json")
    np.testing.assert_array_equal(label, expected)


UAVID = [(0, 0, 0), (128, 0, 0), (128, 64, 128), (0, 128, 0)]
UAVID += [(128, 128, 0), (64, 0, 128), (192, 0, 192), (64, 64, 0)]


def test_colors(tmp_path):
    for name in ("mess_suim", "mess_isaid", "mess_isprs_potsdam", "mess_cwfid", "mess_uavid"):
        colors = UAVID if name == "mess_uavid" else get_vocabulary(name).rgb_by_class
        file = save(tmp_path / f"{name}.png", np.array([colors], np.uint8))
        assert train_ids(name, file).tolist() == [list(range(len(colors)))], name
    assert len(get_vocabulary("mess_uavid").train_id_by_value) == 8
    shaded = np.array([[[252, 255, 3], [100, 20, 140]]], np.uint8)
    file = save(tmp_path / "shaded.tif", shaded)
    assert train_ids("mess_isprs_potsdam", file).tolist() == [[4, 1]]
    with pytest.raises(
        SammiError, match=r"shaded.*does not know: \(100, 20, 140\), \(252, 255, 3\)"
    ):
        train_ids("mess_cwfid", file)


def test_binary_masks(tmp_path):
    soft = np.array([[0, 129, 254, 255]], np.uint8)  # and 128 is not yet more than half
    assert train_ids("mess_deepcrack", save(tmp_path / "a.png", soft)).tolist() == [[0, 0, 0, 1]]
    rgb = np.stack([soft, 255 - soft, soft], -1)
    assert train_ids("mess_kvasir_instrument", save(tmp_path / "b.png", rgb)).tolist() == [
        [0, 0, 0, 1]
    ]
    one_bit = save(tmp_path / "c.png", soft, mode="1")
    with Image.open(one_bit) as image:
        assert image.mode == "1"
    assert set(np.unique(train_ids("mess_chase_db1", one_bit))) == {0, 1}
    bird = save(tmp_path / "012.Blackbird" / "d.png", soft)
    assert train_ids("mess_cub_200", bird).tolist() == [[0, 12, 12, 12]]
    save(bird, np.array([[127, 128, 129]], np.uint8))
    assert train_ids("mess_cub_200", bird).tolist() == [[0, 0, 12]]


def test_ade_full(tmp_path):
    """Red is ten times the hundreds, and a rest that means nothing; blue tells the instances."""
    colors = [(0, 1, 9), (10, 0, 0), (27, 44, 200), (39, 255, 7)]
    file = save(tmp_path / "a_seg.png", np.array([colors], np.uint8))
    assert READERS["ade_full"](pair(file), 0).tolist() == [[1, 256, 2 * 256 + 44, 3 * 256 + 255]]


def test_colors_beyond_the_last_known_one(tmp_path):
    file = save(tmp_path / "odd.png", np.array([[(255, 255, 255), (255, 255, 254)]], np.uint8))
    assert (255, 255, 255) not in get_vocabulary("mess_cwfid").rgb_by_class
    with pytest.raises(SammiError, match=r"does not know: \(255, 255, 254\), \(255, 255, 255\)"):
        train_ids("mess_cwfid", file)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_a_label_is_of_two_axes(shape):
    with pytest.raises(SammiError, match=r"x: a label of shape .*, not height x width"):
        LabelMap(get_vocabulary("ade20k_150"))(np.ones(shape, np.int32), "x")


@pytest.mark.parametrize(
    ("ignore", "classes", "bits"), [(255, 255, 8), (255, 257, 16), (256, 2, 16)]
)
def test_labels_are_stored_in_8_bits_where_they_fit(ignore, classes, bits):
    known = get_vocabulary("ade20k_150")
    made = dataclasses.replace(known, ignore_index=ignore, merge=tuple(range(classes)))
    assert made.label_dtype == (np.uint8 if bits == 8 else np.uint16)


def test_all_classes_are_of_interest_where_none_are_named():
    known = get_vocabulary("ade20k_150")
    assert known.classes_of_interest == tuple(range(150))
    shared = get_vocabulary("pascal_voc_20b")  # its background has many texts
    assert shared.class_titles[20] == "background"
    assert shared.class_titles[:20] == shared.texts[:20]


def test_dark_zurich_and_persons(tmp_path):
    ids = save(tmp_path / "x_gt_labelIds.png", np.array([[0, 7, 33, 33]], np.uint8))
    save(tmp_path / "x_gt_invGray.png", np.array([[0, 0, 0, 255]], np.uint8))
    assert train_ids("mess_dark_zurich", ids).tolist() == [[0, 1, 19, 255]]
    save(tmp_path / "x_gt_invGray.png", np.array([[254, 0, 0, 255]], np.uint8))
    assert train_ids("mess_dark_zurich", ids).tolist() == [[0, 1, 19, 255]]
    for size in ((1, 3), (2, 4)):
        save(tmp_path / "x_gt_invGray.png", np.zeros(size, np.uint8))
        with pytest.raises(SammiError, match="has another size than its invGray file"):
            train_ids("mess_dark_zurich", ids)
    one = save(tmp_path / "1_02_01.png", np.array([[0, 3, 18]], np.uint8))
    two = save(tmp_path / "1_02_02.png", np.array([[2, 1, 0]], np.uint8))
    assert train_ids("mess_mhp_v1", one, two).tolist() == [[2, 3, 18]]


def test_paxray_stack(tmp_path):
    stack = np.zeros((166, 2, 2), bool)
    for number, channel in enumerate((0, 10, 24, 163)):
        stack[channel].flat[number] = True
    (tmp_path / "labels").mkdir()
    np.save(tmp_path / "labels" / "a.npy", stack)
    index = {"test": [{"image": "images/a.png", "target": "labels/a.npy"}]}
    (tmp_path / "paxray.json").write_text(json.dumps(index))
    for number, task in enumerate(("lungs", "mediastinum", "bones", "diaphragm")):
        label = train_ids(f"mess_paxray_{task}", tmp_path / "paxray.json")
        assert np.flatnonzero(label).tolist() == [number]


@pytest.mark.parametrize("stack", [np.zeros((2, 3, 4)), np.zeros((2, 3, 4, 5), bool)])
def test_what_is_no_stack_of_masks(tmp_path, stack):
    np.save(tmp_path / "b.npy", stack)
    index = {"test": [{"image": "images/b.png", "target": "b.npy"}]}
    (tmp_path / "other.json").write_text(json.dumps(index))
    with pytest.raises(SammiError, match=r"b\.npy: holds no stack of masks"):
        READERS["stack"](pair(tmp_path / "other.json", key="b"), 0)


def test_a_description_of_too_many_pixels(tmp_path):
    """Of 2^28 at most: it is refused before there is an array; one of a usual size is not."""
    image = {"image_id": 1, "file_name": "a.jpg", "height": 100, "width": 90}
    for name, height in (("usual.json", 100), ("large.json", 2**28 // 90 + 1)):
        content = {"images": [image | {"height": height}], "annos_segmentation": []}
        (tmp_path / name).write_text(json.dumps(content))
    assert READERS["coco_rle"](pair(tmp_path / "usual.json"), 0).shape == (100, 90)
    with pytest.raises(SammiError, match=r"large\.json, image a: declares \d+ x 90 pixels"):
        READERS["coco_rle"](pair(tmp_path / "large.json"), 0)


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("mess_atlantis", [0, 1, 56], [255, 0, 55]),
        ("mess_dram", [0, 3, 17, 20, 255], [11, 0, 10, 11, 255]),
        ("mess_worldfloods", [0, 1, 2, 3], [255, 0, 1, 2]),
        ("mess_bdd100k", [0, 18, 255], [0, 18, 255]),
        ("mess_foodseg", [0, 103], [0, 103]),
        ("ade20k_150", [0, 1, 150], [255, 0, 149]),
    ],
)
def test_values(tmp_path, name, raw, expected):
    file = save(tmp_path / "a.png", np.array([raw], np.uint8))
    assert train_ids(name, file).tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ade20k_150", 151), ("pascal_voc_20", 21), ("mess_bdd100k", 19), ("mess_atlantis", 57)],
)
def test_a_value_outside_the_mapping_names_the_file(tmp_path, name, value):
    file = save(tmp_path / "odd.png", np.array([[1, value, value]], np.uint8))
    with pytest.raises(
        SammiError, match=rf"odd\.png: values that {name} does not know: {value} \(2"
    ):
        train_ids(name, file)


def test_a_color_image_is_no_index_label(tmp_path):
    file = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(SammiError, match=r"mode RGB where one with a class number"):
        train_ids("ade20k_150", file)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(SammiError, match=r"a\.png: cannot be decoded"):
        train_ids("ade20k_150", file)


def test_every_set_has_a_reader():
    assert {layout.kind for layout in LAYOUTS.values()} == set(READERS)


# --- cutting and resizing ---


def test_tiles():
    array = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    cut = list(tiles(array, 4, 255))
    assert len(cut) == 4
    np.testing.assert_array_equal(cut[0], array[:4, :4])
    np.testing.assert_array_equal(cut[1][:, :3], array[:4, 4:])
    assert (cut[1][:, 3] == 255).all()
    assert (cut[3][:1, :3] == array[4:, 4:]).all()
    assert (cut[3][1:] == 255).all()


def test_resizing_follows_opencv():
    """Values from cv2 5.0.0: INTER_LINEAR and INTER_NEAREST of this 6 x 5 ramp to 4 x 3."""
    ramp = (np.arange(6 * 5).reshape(6, 5) * 37 % 251).astype(np.uint8)
    linear = resize_linear(np.repeat(ramp[..., None], 3, -1), 4, 3)[..., 0]
    assert linear.tolist() == [[59, 58, 119], [148, 147, 83], [91, 111, 172], [180, 200, 73]]
    assert resize_nearest(ramp, 4, 3).tolist() == [
        [0, 37, 111],
        [185, 222, 45],
        [53, 90, 164],
        [238, 24, 98],
    ]


def test_png_keeps_sixteen_bits(rng):
    for dtype, top in ((np.uint8, 256), (np.uint16, 65536)):
        label = rng.integers(0, top, (9, 5)).astype(dtype)
        back = label_from_png(png_bytes(label))
        assert back.dtype == dtype
        np.testing.assert_array_equal(back, label)
