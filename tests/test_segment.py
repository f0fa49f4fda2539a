"""`sammi segment` on a tiny model folder: what is written, and every kind of bad input."""

import dataclasses
import io
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.errors import SammiError
from sammi_jax.figures import palette
from sammi_jax.files import local_copy, read_json, upload_folder, write_atomic
from sammi_jax.inference.classes import make_class_list
from sammi_jax.inference.forward import ViewScores
from sammi_jax.inference.geotiff import read_geotiff
from sammi_jax.inference.image_files import find_images
from sammi_jax.inference.result import Segmentation
from sammi_jax.inference.segment_files import FileSegmenter, coco_file
from sammi_jax.inference.tiles import TileGrid
from sammi_jax.object_store import put
from sammi_jax.ops.rle import decode_rle, encode_classes, encode_rle, unpack_runs
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.kinds import expected_params
from sammi_jax.weights.model_folder import read_model, write_model
from tests.parity import assert_parity
from tests.test_sammi import SAMMI

TEXT = dataclasses.replace(SAMMI.clip.text, vocab_size=30, context_length=12)
CONFIG = dataclasses.replace(
    SAMMI,
    clip=dataclasses.replace(SAMMI.clip, text=TEXT),
    sliding=None,
    templates=("a photo of a {}",),
)
CLASSES = "red thing, blue waves, green bricks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    params = {
        path: 0.1 * rng.normal(size=want.shape).astype("f")
        for path, want in expected_params(CONFIG).items()
    }
    path = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(build_tokenizer())
    write_model(path, "sammi", CONFIG, params, source={}, licence="", tokenizer=tokenizer)
    return path


@pytest.fixture
def picture(tmp_path, rng):
    path = tmp_path / "picture.png"
    Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(path)
    return path


def _run(*arguments):
    return main(["segment", *map(str, arguments)])


def test_a_bad_picture_does_not_stop_the_others(folder, picture, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    out = tmp_path / "out"
    assert _run(bad, picture, "--classes", CLASSES, "--model", folder, "--out", out, "--coco",
                out / "coco.json", "--batch-size", 2) == 1  # fmt: skip
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "error" in line] == [
        f"sammi: error: {bad}: is no image that can be read; give a PNG, JPEG, TIFF, BMP or WebP "
        "file"
    ]
    written = sorted(path.name for path in out.iterdir() if path.name[0] != ".")
    assert written == ["coco.json", "picture.json", "picture_labels.png", "picture_overlay.png"]
    summary = json.loads((out / "picture.json").read_text())
    labels = np.asarray(Image.open(out / "picture_labels.png"))
    assert labels.shape == (40, 56)
    assert summary["class_names"] == CLASSES.split(", ")
    for entry in summary["classes"]:
        assert entry["pixels"] == (labels == entry["index"]).sum()
    result = sammi_jax.load(folder).segment(picture, CLASSES.split(", "))
    np.testing.assert_array_equal(result.labels, labels)
    assert result.scores.shape == (3, 40, 56)
    assert result.points.shape == (summary["num_points"], 2)
    assert result.masks.shape == (summary["num_masks"], 40, 56)
    assert ((result.scores >= 0) & (result.scores <= 1)).all()


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (" , ", "the class list is empty"),
        ("red thing, Red  thing", "more than once"),
        ("none.txt", "none.txt: no such file of class names"),
    ],
)
def test_class_lists_that_are_refused(folder, picture, tmp_path, capsys, classes, words):
    out = tmp_path / "out"
    assert _run(picture, "--classes", classes, "--model", folder, "--out", out) == 1
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not out.exists()


def test_two_pictures_of_one_name(folder, picture, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    other = picture.rename(tmp_path / "b" / picture.name)
    code = _run(other, picture, "--classes", CLASSES, "--model", folder, "--out", tmp_path)
    assert code == 1
    assert "would write the same files" in capsys.readouterr().err


def test_folders_that_are_refused(folder, picture, tmp_path, capsys):
    for checkpoint, words in [(tmp_path / "none", "none"), (tmp_path, "config.json")]:
        assert _run(picture, "--classes", "a", "--model", checkpoint, "--out", tmp_path) == 1
        assert words in capsys.readouterr().err
    no_text = tmp_path / "no_text"
    no_text.mkdir()
    for name in ("config.json", "model.safetensors"):
        (no_text / name).write_bytes((folder / name).read_bytes())
    assert _run(picture, "--classes", "a", "--model", no_text, "--out", tmp_path) == 1
    assert "no tokenizer.json" in capsys.readouterr().err


def test_long_lists_are_written_in_16_bits(tmp_path):
    names = [f"class {i}" for i in range(300)]
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    image, confidence = np.zeros((15, 20, 3), np.uint8), np.zeros((15, 20), np.float32)
    result = Segmentation(image, names, labels, confidence)
    result.write(tmp_path, "long")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "long_labels.png")), labels)


@pytest.fixture(scope="module")
def model(folder):
    return sammi_jax.load(folder)


def test_what_an_image_may_be(model, picture, rng):
    names = CLASSES.split(", ")
    image = np.asarray(Image.open(picture))
    wanted = model.segment(picture, names)
    with picture.open("rb") as file:
        for given in (image, picture.read_bytes(), file, jnp.asarray(image), str(picture)):
            np.testing.assert_array_equal(model.segment(given, names).labels, wanted.labels)
    other = rng.integers(0, 256, (30, 90, 3), dtype=np.uint8)
    first, second = model.segment([picture, other], CLASSES)
    np.testing.assert_array_equal(first.labels, wanted.labels)
    assert second.labels.shape == (30, 90)
    with pytest.raises(SammiError, match="scores were not kept"):
        _ = second.scores


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "the image is a NoneType"),
        ({"a": 1}, "the image is a dict"),
        (np.zeros((4, 4, 3), np.float32), "give uint8"),
        (b"no image", "is no image"),
        (b"%PDF-1.7 and more", "is a PDF document"),
    ],
)
def test_what_is_no_image(model, image, words):
    with pytest.raises(SammiError, match=words):
        model.segment(image, ["a"])


def test_scores_on_request_agree_with_the_labels(model, picture):
    names = CLASSES.split(", ")
    result = model.segment(picture, names)
    np.testing.assert_array_equal(result.scores.argmax(axis=0), result.labels)
    np.testing.assert_allclose(result.scores.max(axis=0), result.confidence, atol=1e-6)
    canvas = model.predict_batch(model.prepare(np.asarray(Image.open(picture))), names)
    np.testing.assert_allclose(result.canvas_scores, canvas.probabilities[0], atol=1e-6)


def test_classes_are_read_out_in_chunks(model, rng):
    maps = jnp.asarray(rng.normal(size=(1, 1, 24, 16, 16)), jnp.float32)
    scores, mask = ViewScores(maps), jnp.arange(24) < 21
    classes = make_class_list([f"class {i}" for i in range(21)])
    best, index = model.read_best(scores, mask, classes, (50, 70))
    every = model.read_scores(scores, 21, (50, 70))
    np.testing.assert_array_equal(every.argmax(axis=0), index)
    np.testing.assert_allclose(every.max(axis=0), best, atol=1e-6)
    assert model.read_scores(scores, 21, None).shape == (21, 16, 16)


def test_the_memory_is_told(model):
    small, large = (model.memory(3, (40 * n, 56 * n)) for n in (1, 20))
    assert small["weights"] == sum(x.nbytes for x in jax.tree.leaves(model.state))
    assert small["network"] == large["network"] > 0
    assert large["result"] == 400 * small["result"]
    assert small["readout"] < large["readout"] < 400 * small["readout"]


def test_synonyms_and_background(model, picture):
    plain = model.segment(picture, ["red thing", "blue waves", "green bricks"])
    joint = model.segment(picture, ["red thing; blue waves", "green bricks"])
    assert joint.class_names == ["red thing", "green bricks"]
    np.testing.assert_array_equal(joint.labels, np.array([0, 0, 1])[plain.labels])
    middle = float(np.median(plain.confidence))
    cut = model.segment(picture, CLASSES, threshold=middle)
    assert cut.class_names[-1] == "background"
    expected = np.where(plain.confidence < middle, 3, plain.labels)
    np.testing.assert_array_equal(cut.labels, expected)
    np.testing.assert_array_equal(cut.scores.argmax(axis=0)[expected < 3], expected[expected < 3])
    named = model.segment(picture, ["red thing", "blue waves"], background="green bricks")
    np.testing.assert_array_equal(named.labels, plain.labels)


def test_text_embeddings_from_elsewhere(model, picture):
    names = CLASSES.split(", ")
    wanted = model.segment(picture, names)
    embeddings = 3.0 * np.asarray(model.encode_classes(names).features)[:3]
    given = model.segment(picture, ["a", "b", "c"], text_embeddings=embeddings[:, 0])
    # Not the labels: two classes may score alike but for rounding.
    assert_parity(given.scores, wanted.scores, 1e-5, "given embeddings")
    for wrong, words in ((embeddings[:2], "this model takes"), (0 * embeddings, "are zero")):
        with pytest.raises(SammiError, match=words):
            model.segment(picture, names, text_embeddings=wrong)


def test_tiles_do_not_see_the_extent(model, rng):
    image = rng.integers(0, 256, (130, 150, 3), dtype=np.uint8)
    tiles = TileGrid(48, 16)
    whole = model.segment(image, CLASSES, tile=tiles).labels
    cut = model.segment(image[20:, 10:], CLASSES, tile=TileGrid(48, 16, origin=(-20, -10))).labels
    np.testing.assert_array_equal(cut[48:-48, 48:-48], whole[20 + 48 : -48, 10 + 48 : -48])
    assert len(np.unique(whole)) > 1


def test_what_a_notebook_shows_and_where_it_can_be_saved(model, picture, tmp_path):
    result = model.segment(picture, CLASSES)
    assert Image.open(io.BytesIO(result._repr_png_())).size[0] >= 56
    result.save(tmp_path / "overlay.jpg")
    with Image.open(tmp_path / "overlay.jpg") as image:
        assert image.format == "JPEG"
    for name in ("overlay", "overlay.txt"):
        with pytest.raises(SammiError, match="no image format"):
            result.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["overlay.jpg", "picture.png"]


def test_the_json_holds_coco_masks(model, picture, tmp_path):
    result = model.segment(picture, CLASSES)
    result.write(tmp_path / "out", "picture")
    found = json.loads((tmp_path / "out" / "picture.json").read_text())
    for entry in found["annotations"]:
        mask = decode_rle(entry["segmentation"], "picture")
        np.testing.assert_array_equal(mask, result.labels == entry["index"])
        assert entry["area"] == mask.sum()
    assert len(found["regions"]) == len(result.masks)
    for entry, mask in zip(found["regions"], result.masks, strict=True):
        np.testing.assert_array_equal(decode_rle(entry["segmentation"], "picture"), mask)
        x, y, width, height = entry["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum() == entry["area"]
        most = np.bincount(result.labels[mask], minlength=3).argmax()
        assert entry["name"] == result.class_names[most]


def test_a_run_is_resumed(model, picture, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    (images / "deep").mkdir(parents=True)
    for name in ("a.png", "b.png", "deep/a.png"):
        (images / name).write_bytes(picture.read_bytes())
    Image.open(picture).save(images / "b.jpg")
    files = find_images([images])
    job = FileSegmenter(model, make_class_list(CLASSES), out, 1)
    job.claim("digest", overwrite=False)
    assert job.pending(files) == files
    assert not any(outcome.error for outcome in job(files))
    results = ["a", "b_jpg", "b_png", "deep/a"]
    assert all((out / f"{name}.json").is_file() for name in results)
    record = coco_file(files, out, job.class_names)
    assert [Path(image["file_name"]).name for image in record["images"]] == [
        "a.png", "b.jpg", "b.png", "a.png",
    ]  # fmt: skip
    assert {entry["category_id"] for entry in record["annotations"]} <= {1, 2, 3}
    (out / "b_png.json").unlink()
    os.utime(images / "deep" / "a.png", (1e9, 1e9))  # replaced, by an older file
    job.claim("digest", overwrite=False)
    assert [file.name for file in job.pending(files)] == ["b_png", "deep/a"]
    other = FileSegmenter(model, make_class_list("red thing"), out, 1)
    with pytest.raises(SammiError, match=r"other settings \(class_names, texts\)"):
        other.claim("digest", overwrite=False)
    other.claim("digest", overwrite=True)  # and is then interrupted: nothing of before counts
    assert other.pending(files) == files
    job.claim("digest", overwrite=True)
    with pytest.raises(SammiError, match="would overwrite it"):
        job.pending(find_images([picture.rename(tmp_path / "a.png")]))


@pytest.mark.parametrize(
    ("names", "words"),
    [(["empty"], "no images in this folder"), (["none/*.png"], "no file matches")],
)
def test_places_without_images(tmp_path, names, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SammiError, match=words):
        find_images([str(tmp_path / name) for name in names])


def test_names_of_results(tmp_path):
    for name in ("a/x.png", "b/x.png", "b/deep/y.jpg", "b/._y.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "a", tmp_path / "b"])
    assert [file.name for file in found] == ["a/x", "b/x", "b/deep/y"]
    with pytest.raises(SammiError, match="would write the same files"):
        find_images([str(tmp_path / "*/*.png")])


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_there_and_back(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 90), rng.integers(1, 700))) < rng.choice([0, 0.01, 0.5, 1])
    encoded = encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(encoded, "here"), mask)
    assert encoded["size"] == list(mask.shape)


def test_run_lengths_of_all_classes(rng):
    labels = rng.integers(0, 5, (30, 40)) * (rng.random((30, 40)) < 0.4)
    encoded = encode_classes(labels)
    assert set(encoded) == set(np.unique(labels))
    for value, found in encoded.items():
        np.testing.assert_array_equal(decode_rle(found, "here"), labels == value)


def test_known_run_lengths():
    # from pycocotools 2.0.10: mask.encode(np.asfortranarray([[0, 1, 1], [1, 1, 0]], np.uint8))
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert unpack_runs(encode_rle(mask)["counts"]) == [1, 4, 1]


@pytest.mark.parametrize("size", [(10, 10), (100, 37), (64, 65), (131, 257)])
@pytest.mark.parametrize("grid", [TileGrid(32, 8), TileGrid(32, 30, (5, -3)), TileGrid(64, 0)])
def test_tiles_cover_every_pixel_once(size, grid):
    seen = np.zeros(size, int)
    for tile in grid.cover(size):
        seen[tile.kept_rows, tile.kept_columns] += 1
        for whole, kept, length in zip(
            (tile.rows, tile.columns), (tile.kept_rows, tile.kept_columns), size, strict=True
        ):
            assert 0 <= whole.start <= kept.start < kept.stop <= whole.stop <= length
            assert whole.stop - whole.start == min(grid.side, length)
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["a; b", "b"], {}, "more than once"),
        ([" ; "], {}, "is no class name"),
        (["a"], {"threshold": 1.5}, "between 0 and 1"),
        (["a"], {"background": "a"}, "the only class"),
        ([1], {}, "must be strings"),
    ],
)
def test_class_lists_that_cannot_be(names, options, words):
    with pytest.raises(SammiError, match=words):
        make_class_list(names, **options)


def test_a_geotiff_keeps_its_place(folder, tmp_path, rng):
    import rasterio

    pixels = rng.integers(0, 40_000, (3, 60, 70), dtype=np.uint16)
    place = rasterio.Affine(10.0, 0.0, 500_000, 0.0, -10.0, 5_800_000)
    profile = {"driver": "GTiff", "height": 60, "width": 70, "count": 3, "dtype": "uint16",
               "crs": "EPSG:32633", "transform": place, "nodata": 0}  # fmt: skip
    pixels[:, :5] = 0
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as file:
        file.write(pixels)
    arguments = ("--classes", CLASSES, "--model", folder, "--tile", 40, "--out", tmp_path / "out")
    assert read_geotiff(tmp_path / "scene.tif").origin == (580_000, -50_000)
    assert _run(tmp_path / "scene.tif", *arguments) == 0
    with rasterio.open(tmp_path / "out" / "scene_labels.tif") as file:
        labels = file.read(1)
        assert file.transform == place
        assert file.crs == "EPSG:32633"
        assert (file.dataset_mask()[:5] == 0).all()
    assert set(np.unique(labels[5:])) <= {0, 1, 2}
    png = np.asarray(Image.open(tmp_path / "out" / "scene_labels.png"))
    np.testing.assert_array_equal(labels[5:], png[5:])


def test_a_geotiff_with_a_palette(tmp_path, rng):
    import rasterio

    indices = rng.integers(0, 3, (6, 5), dtype=np.uint8)
    profile = {"driver": "GTiff", "height": 6, "width": 5, "count": 1, "dtype": "uint8",
               "crs": "EPSG:32633", "transform": rasterio.Affine(1, 0, 9, 0, -1, 9)}  # fmt: skip
    colors = {0: (9, 8, 7, 255), 1: (200, 10, 10, 255), 2: (0, 0, 250, 255)}
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
        file.write(indices, 1)
        file.write_colormap(1, colors)
    table = np.array([color[:3] for color in colors.values()], np.uint8)
    np.testing.assert_array_equal(read_geotiff(tmp_path / "a.tif").pixels, table[indices])


def test_replaced_parameters_are_used(folder, picture):
    """Nothing that was made of the old ones is left."""
    model, fresh = sammi_jax.load(folder), sammi_jax.load(folder)
    before = model.segment(picture, CLASSES).confidence
    model.sam.segment(picture, points=[[5, 5]])
    params = {path: 1.5 * value for path, value in read_model(folder).params.items()}
    for each in (model, fresh):
        each.replace_params(params)
    found, wanted = (each.segment(picture, CLASSES) for each in (model, fresh))
    np.testing.assert_array_equal(found.confidence, wanted.confidence)
    assert np.abs(found.confidence - before).max() > 1e-3
    np.testing.assert_array_equal(
        model.sam.segment(picture, points=[[5, 5]]).iou,
        fresh.sam.segment(picture, points=[[5, 5]]).iou,
    )


def test_palette_colors_differ():
    assert len({tuple(color) for color in palette(847).tolist()}) == 847


@pytest.mark.parametrize(
    "bucket", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs: in one piece
def test_everything_in_a_bucket(bucket, picture, folder, tmp_path, capsys):
    """The image, the model, the class names and the results are in the bucket."""
    write_atomic(bucket / "classes.txt", "red thing\nblue waves\n")
    put(bucket / "in" / picture.name, picture)
    upload_folder(folder, bucket / "model", "config.json")

    def run(image, classes, model, out):
        arguments = [image, "--classes", classes, "--model", model, "--out", out / "out"]
        assert main(["segment", *map(str, arguments), "--coco", f"{out}/coco.json"]) == 0

    run(bucket / "in", bucket / "classes.txt", bucket / "model", bucket)
    run(picture, "red thing,blue waves", folder, tmp_path)
    (image,), (other,) = (read_json(top / "coco.json")["images"] for top in (bucket, tmp_path))
    assert image == other | {"file_name": f"{bucket}/in/{picture.name}"}
    copy = local_copy(bucket / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert sorted(path.name for path in copy.iterdir()) == names
    for name in names:
        if name.endswith(".png"):
            assert (copy / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    put(bucket / "in" / "second.png", picture)
    capsys.readouterr()
    run(bucket / "in", bucket / "classes.txt", bucket / "model", bucket)
    text = capsys.readouterr().out
    assert "1 of 2 images have a result" in text
    assert f"{bucket}/in/second.png: " in text
