"""SAM by prompts in the image's own pixels, and `sammi masks`.

The references follow segment_anything's predictor and mask generator, with torch's resizing.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.errors import SammiError
from sammi_jax.files import local_copy, read_json
from sammi_jax.inference.forward import sam_views
from sammi_jax.inference.inputs import sam_input
from sammi_jax.inference.prompting import grid, mask_prompt, suppress
from sammi_jax.object_store import put
from sammi_jax.ops.rle import decode_rle
from sammi_jax.ops.sam_image import resized_shape


@pytest.fixture(scope="module")
def sam():
    return sammi_jax.load_sam("openshapes")


@pytest.fixture(scope="module")
def image():
    """Two squares and a disk on gray, wider than high."""
    pixels = np.full((70, 110, 3), 120, np.uint8)
    pixels[10:40, 8:38] = (200, 40, 40)
    pixels[35:65, 70:100] = (40, 60, 200)
    y, x = np.mgrid[:70, :110]
    pixels[(y - 20) ** 2 + (x - 80) ** 2 < 150] = (60, 180, 60)
    return pixels


def _upscaled(logits, size, side):
    """segment_anything's postprocess_masks, float64."""
    masks = torch.from_numpy(np.array(logits, np.float64))[:, None]
    masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
    height, width = resized_shape(*size, side)
    masks = masks[..., :height, :width]
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)[:, 0].numpy()


def _decoded(sam, image, points):
    """Logits and IoU of each point by itself, by the network's own methods."""
    side = sam.config.image_size
    pixels, size = sam_input(image, side)
    prepared = sam_views(jnp.asarray(pixels[None]), jnp.asarray(size[None]))
    embedding = sam.encode_image(prepared.images)
    height, width = resized_shape(*image.shape[:2], side)
    placed = points * np.array([width / image.shape[1], height / image.shape[0]])
    labels = np.ones((1, len(points)), np.int32)
    return (np.asarray(x[0]) for x in sam.decode(embedding, placed[None], labels))


def test_a_point_gives_its_best_mask(sam, image):
    points = np.array([[20.0, 25.0], [85.0, 50.0]])
    found = sam.segment(image, points=points[:, None])
    logits, iou = _decoded(sam, image, points)
    best = iou.argmax(axis=1)
    np.testing.assert_allclose(found.iou, iou.max(axis=1), atol=1e-5)
    wanted = _upscaled(logits[[0, 1], best], (70, 110), sam.config.image_size)
    sure = np.abs(wanted) > 1e-4
    np.testing.assert_array_equal(found.masks[sure], (wanted > 0)[sure])
    assert found.masks[0, 25, 20]
    assert not found.masks[0, 50, 85]
    three = sam.segment(image, points=points[:1], multimask=True)
    assert three.masks.shape == (3, 70, 110)
    np.testing.assert_allclose(three.iou, iou[0], atol=1e-5)


def test_boxes_and_masks_find_the_object(sam, image):
    truth = np.zeros((70, 110), bool)
    truth[35:65, 70:100] = True
    box = sam.segment(image, boxes=[70, 35, 99, 64])
    assert box.masks.shape == (1, 70, 110)
    shown = sam.embed(image)
    first = sam.segment(shown, points=[[85, 50]])
    again = sam.segment(shown, points=[[85, 50]], masks=first.logits)
    assert (first.masks[0] & truth).sum() / (first.masks[0] | truth).sum() > 0.7
    assert np.abs(again.logits - first.logits).max() > 0.1  # the mask is another prompt
    prompt = mask_prompt(truth, truth.shape, sam.config.image_size, sam.config.mask_size)
    assert sam.segment(shown, points=[[85, 50]], masks=prompt).masks.shape == (1, 70, 110)
    both = sam.segment(
        shown, points=[[[20, 25]], [[85, 50]]], boxes=[[8, 10, 37, 39], [70, 35, 99, 64]]
    )
    assert both.masks.shape == (2, 70, 110)


def test_everything_as_the_reference(sam, image):
    """The same masks in the same order as the reference's filters and suppression give."""
    options = {"min_iou": 0.5, "min_stability": 0.7, "max_overlap": 0.6}
    found = sam.everything(image, grid=6, **options)
    points = grid(6, image.shape[:2])
    logits, iou = _decoded(sam, image, points)
    logits, iou = logits.reshape(-1, *logits.shape[2:]), iou.ravel()
    values = _upscaled(logits, image.shape[:2], sam.config.image_size)
    loose = (values > -1).sum(axis=(1, 2))
    stability = (values > 1).sum(axis=(1, 2)) / np.maximum(loose, 1)
    good = np.flatnonzero((iou > options["min_iou"]) & (stability >= options["min_stability"]))
    order = good[np.argsort(-iou[good], kind="stable")]
    kept = []
    for index in order:
        if all(_box_iou(values[index], values[other]) <= options["max_overlap"] for other in kept):
            kept.append(index)
    assert len(kept) > 3
    np.testing.assert_allclose(found.iou, iou[kept], atol=1e-5)
    np.testing.assert_allclose(found.stability, stability[kept], atol=1e-3)
    sure = np.abs(values[kept]) > 1e-4
    np.testing.assert_array_equal(found.masks[sure], (values[kept] > 0)[sure])
    np.testing.assert_array_equal(found.points, np.repeat(points, 3, axis=0)[kept])


def _box(values):
    rows, columns = np.nonzero(values > 0)
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)


def _box_iou(a, b):
    (a, b) = (_box(a), _box(b))
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    area = [np.prod(box[2:] - box[:2]) for box in (a, b)]
    return sides.prod() / (sum(area) - sides.prod())


def test_suppression_of_boxes():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)
    order, keep = suppress(boxes, np.array([0.5, 0.9, 0.1, -np.inf], np.float32), max_overlap=0.5)
    assert np.asarray(order)[np.asarray(keep)].tolist() == [1, 2]


def test_nothing_found(sam):
    found = sam.everything(np.zeros((20, 20, 3), np.uint8), grid=2, min_iou=0.999)
    assert found.masks.shape == (0, 20, 20)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({}, "no prompt"),
        ({"points": [[200, 5]]}, r"\(200, 5\) lies outside the image of 110 x 70"),
        ({"points": [1, 2, 3]}, "points"),
        ({"points": "center"}, "points: give numbers"),
        ({"points": [[5, 5]], "labels": [2]}, "point labels"),
        ({"labels": [1]}, "no prompt"),
        ({"boxes": [10, 10, 5, 5]}, "no area"),
        ({"boxes": [10, 10, 5]}, "boxes"),
        ({"points": [[[5, 5]], [[6, 6]]], "boxes": [1, 1, 5, 5]}, "different numbers"),
        ({"masks": np.zeros((3, 3))}, "mask prompts"),
    ],
)
def test_prompts_that_cannot_be(sam, image, prompts, words):
    with pytest.raises(SammiError, match=words):
        sam.segment(sam.embed(image), **prompts)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda sam: sam.encode_image(np.zeros((1, 5, 5, 3))), "use sam.embed"),
        (lambda sam: sam.decode(np.zeros((1, 2, 2, 3)), [[[1, 2]]], [[1]]), "embeddings"),
        (lambda sam: sam.embed(None), "the image is a NoneType"),
        (lambda sam: sam.everything(np.zeros((4, 4, 3), np.uint8), grid=0), "at least 1"),
    ],
)
def test_arrays_that_sam_does_not_take(sam, call, words):
    with pytest.raises(SammiError, match=words):
        call(sam)


def test_the_sam_of_a_sammi(sam, image):
    found = sammi_jax.load().sam.segment(image, points=[[20, 25]])
    other = sam.segment(image, points=[[20, 25]])
    np.testing.assert_array_equal(found.masks, other.masks)


@pytest.fixture
def file(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "shapes.png")
    return tmp_path / "shapes.png"


def _run(*arguments):
    return main(["masks", *map(str, arguments)])


def test_the_command(sam, image, file, tmp_path, capsys):
    out = tmp_path / "out"
    Image.fromarray(image[..., 0] > 150).save(tmp_path / "rough.png")
    arguments = ("--points", "20,25; 60,60,0", "--mask", tmp_path / "rough.png", "--out", out)
    assert _run(file, *arguments) == 0
    record = json.loads((out / "shapes_masks.json").read_text())
    (entry,) = record["masks"]
    mask = decode_rle(entry["segmentation"], "shapes")
    rough = mask_prompt(image[..., 0] > 150, (70, 110), sam.config.image_size, sam.config.mask_size)
    wanted = sam.segment(image, points=[[20, 25], [60, 60]], labels=[1, 0], masks=rough)
    np.testing.assert_array_equal(mask, wanted.masks[0])
    assert entry["area"] == mask.sum()
    with Image.open(out / "shapes_masks.png") as drawn:
        assert drawn.size == (110, 70)
    assert _run(file, tmp_path / "none.png", "--grid", 3, "--min-iou", 0.5, "--out", out) == 1
    captured = capsys.readouterr()
    assert "none.png: no such file" in captured.err
    assert "masks," in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--points", "1,2,3,4"], "--points '1,2,3,4': give 2 or 3 numbers"),
        (["--box", "1,2"], "--box '1,2': give 4 numbers"),
        (["--points", "1,2;3,4", "--points", "1,2"], "as many points for each object"),
        (["--points", "1,2", "--grid", "4"], "--grid is for a grid"),
    ],
)
def test_options_that_do_not_fit(file, tmp_path, capsys, arguments, words):
    assert _run(file, *arguments, "--out", tmp_path / "out") == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "bucket", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
def test_everything_in_a_bucket(bucket, file, image, tmp_path):
    Image.fromarray(image[..., 0] > 150).save(tmp_path / "rough.png")
    for path in (file, tmp_path / "rough.png"):
        put(bucket / path.name, path)
    for top in (bucket, tmp_path):
        prompts = ("--points", "20,25", "--mask", f"{top}/rough.png")
        assert _run(f"{top}/{file.name}", *prompts, "--out", f"{top}/out") == 0
    copy = local_copy(bucket / "out")
    drawn = [top / "shapes_masks.png" for top in (copy, tmp_path / "out")]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    found, wanted = (read_json(top / "shapes_masks.json") for top in (copy, tmp_path / "out"))
    assert found == wanted | {"image": f"{bucket}/{file.name}"}
