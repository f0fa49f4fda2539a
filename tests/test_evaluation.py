"""The evaluator: its programs against plain numpy, and that nothing but the images counts."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sammi_jax.config.experiment import EvalConfig
from sammi_jax.config.model import SEGMENTER_SIZES, SlidingConfig
from sammi_jax.data.catalogue import Dataset
from sammi_jax.errors import SammiError
from sammi_jax.evaluation import confusion_matrix, scores
from sammi_jax.evaluation.buckets import choose_buckets, plan_batches
from sammi_jax.evaluation.evaluator import evaluate
from sammi_jax.evaluation.partial import _as_words, _from_words
from sammi_jax.evaluation.program import boundary_distance
from sammi_jax.evaluation.report import papers_table
from sammi_jax.evaluation.totals import Counts, add_counts, from_arrays, to_arrays, zero_sums
from sammi_jax.inference.forward import ViewScores
from sammi_jax.inference.inputs import SegmenterInput
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.object_store import list_objects
from sammi_jax.ops.boundary import region_boundary
from sammi_jax.ops.resize import bilinear_taps, resize, resize_matrix

NUM_TEXTS, NUM_CLASSES, IGNORE = 5, 4, 255
CONFIG = dataclasses.replace(
    SEGMENTER_SIZES["openshapes"], sliding=SlidingConfig(output_size=144, stride=48)
)


class PlainPredictor:
    """A predictor without a network: the maps are fixed combinations of the canvas's colors."""

    config = CONFIG
    state = np.random.default_rng(3).normal(size=(3, NUM_TEXTS)).astype(np.float32)

    def encode_classes(self, class_names):
        return ClassTexts(jnp.zeros((8, 1, 1)), jnp.arange(8) < len(class_names))

    def prepare(self, image, config=None):
        side = (config or CONFIG).sliding.output_size
        rows, columns = (resize_matrix(n, side) for n in image.shape[:2])
        canvas = np.einsum("oh,hwc,pw->opc", rows, image.astype(np.float32), columns, optimize=True)
        return SegmenterInput(canvas[None], None, None, None)

    def views(self, state, inputs, text, layout):
        del text
        maps = jnp.einsum("bhwc,ct->bthw", inputs.canvas / 255 - 0.5, state)
        maps = jnp.pad(maps, ((0, 0), (0, 8 - NUM_TEXTS), (0, 0), (0, 0)), constant_values=9.0)
        return ViewScores(maps[:, None])

    def blend(self, scores, layout):
        return scores.maps[:, 0]


class Images:
    """Random images of several sizes whose labels have ignored pixels."""

    def __init__(self, sizes):
        rng = np.random.default_rng(0)
        self.examples = []
        for i, (height, width) in enumerate(sizes):
            small = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
            image = np.asarray(Image.fromarray(small).resize((width, height)))
            label = np.kron(rng.integers(0, NUM_CLASSES, (9, 9)), np.ones((30, 30), int))
            label = label[:height, :width].astype(np.uint8)
            label[rng.random(label.shape) < 0.1] = IGNORE
            self.examples.append({"image": image, "label": label, "file_name": f"a/{i}.jpg"})

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


class KnowsSizes(Images):
    """As the prepared sets: sizes without decoding. Notes what is read; stops where told to."""

    def __init__(self, sizes, stop_at=None):
        super().__init__(sizes)
        self.read, self.stop_at = [], stop_at

    def glance(self, index):
        return SimpleNamespace(label=self.examples[index]["label"])

    def __getitem__(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        return super().__getitem__(index)


SIZES = [(90, 130), (130, 90), (200, 64), (64, 64), (129, 200), (90, 130), (64, 65)]


@pytest.fixture(scope="module")
def dataset():
    return Dataset(
        "images",
        Images(SIZES),
        ("a", "b", "c", "d", "e"),
        (0, 1, 2, 3, 3),
        IGNORE,
        background=3,
        classes_of_interest=(0, 1),
    )


def run(dataset, tmp_path, devices=1, identity=None, **settings):
    mesh = jax.make_mesh(
        (devices, 1),
        ("data", "fsdp"),
        devices=jax.devices()[:devices],
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )
    settings = {"batch_size": devices} | settings
    return evaluate(
        PlainPredictor(), dataset, EvalConfig(**settings), mesh, tmp_path, identity or {}
    )


def without_time(record):
    return {name: value for name, value in record.items() if name != "timing"}


def reference(dataset, threshold=None, texts=NUM_TEXTS, shown=(lambda x: x,), sides=(144,)):
    """Label maps by `resize` and one argmax over everything, then the confusion in numpy."""
    predictor, total = PlainPredictor(), 0
    predictions = []
    for example in dataset.source.examples:
        maps = []
        for side in sides:
            config = dataclasses.replace(CONFIG, sliding=SlidingConfig(side, 48))
            for flip in shown:
                canvas = predictor.prepare(flip(example["image"]), config).canvas
                out = (canvas[0] / 255 - 0.5) @ predictor.state
                maps.append(resize(jnp.asarray(flip(out)), example["label"].shape))
        mean = np.mean(maps, axis=0)[..., :texts]
        merged = np.array(dataset.merge)[mean.argmax(axis=-1)]
        if threshold is not None:
            merged[mean.max(axis=-1) < threshold] = dataset.background
        predictions.append(merged)
        total = total + confusion_matrix(merged, example["label"], NUM_CLASSES, IGNORE)
    return total, predictions


def check(record, confusion):
    expected = scores(confusion)
    for name in ("miou", "miou_union", "fwiou", "macc", "pacc"):
        assert record[name] == pytest.approx(expected[name], abs=1e-12), name
    for row, iou in zip(record["classes"], expected["iou"], strict=True):
        assert (None if np.isnan(iou) else pytest.approx(iou, abs=1e-12)) == row["iou"]
    assert [row["label_pixels"] for row in record["classes"]] == confusion.sum(axis=1).tolist()
    assert [row["predicted_pixels"] for row in record["classes"]] == confusion.sum(axis=0).tolist()


def test_equals_numpy(dataset, tmp_path):
    record = run(dataset, tmp_path)
    check(record, reference(dataset)[0])
    assert record["num_images"] == len(SIZES)
    assert record["points_per_image"] is None
    assert record["timing"]["num_compilations"] <= 1 + EvalConfig().max_buckets


def test_class_chunks_and_buckets_change_nothing(dataset, tmp_path):
    expected = without_time(run(dataset, tmp_path))
    few = run(dataset, tmp_path, class_chunk=3, max_buckets=1)
    assert without_time(few) == expected
    assert few["timing"]["num_compilations"] == 2


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 8), (8, 8)])
def test_batch_and_devices_change_nothing(dataset, tmp_path, devices, batch_size):
    expected = without_time(run(dataset, tmp_path))
    found = run(dataset, tmp_path, devices, batch_size=batch_size)
    assert without_time(found) == expected


def test_augmentation(dataset, tmp_path):
    record = run(dataset, tmp_path, flip=True, scales=(144, 192))
    flips = (lambda x: x, lambda x: x[:, ::-1])
    check(record, reference(dataset, shown=flips, sides=(144, 192))[0])
    with pytest.raises(SammiError, match=r"output_size 150"):
        run(dataset, tmp_path, scales=(150,))


def test_background(dataset, tmp_path):
    record = run(dataset, tmp_path, background="threshold", background_threshold=0.1)
    check(record, reference(dataset, threshold=0.1, texts=3)[0])
    record = run(dataset, tmp_path, background="none")
    confusion = reference(dataset, texts=3)[0]
    confusion[3] = 0  # its pixels are ignored
    check(record, confusion)
    with pytest.raises(SammiError, match="no background class"):
        run(dataclasses.replace(dataset, background=None), tmp_path, background="none")


def test_boundary_iou(dataset, tmp_path):
    record = run(dataset, tmp_path, boundary=True)
    both, label, predicted = np.zeros((3, NUM_CLASSES))
    square = np.ones((3, 3))
    predictions = reference(dataset)[1]
    for example, prediction in zip(dataset.source.examples, predictions, strict=True):
        truth, counted = example["label"], example["label"] != IGNORE
        steps = boundary_distance(*truth.shape)
        for c in range(NUM_CLASSES):
            edges = [
                mask & ~ndimage.binary_erosion(mask, square, steps) & counted
                for mask in (truth == c, prediction == c)
            ]
            label[c] += edges[0].sum()
            predicted[c] += edges[1].sum()
            both[c] += (edges[0] & edges[1]).sum()
    found = [row["boundary_iou"] for row in record["classes"]]
    np.testing.assert_allclose(found, both / (label + predicted - both), rtol=1e-12)
    assert record["boundary_miou"] == pytest.approx(np.mean(found), rel=1e-12)


def test_resumes_to_the_bit(dataset, tmp_path):
    expected = without_time(run(dataset, tmp_path / "whole"))

    broken = dataclasses.replace(dataset, source=KnowsSizes(SIZES, stop_at=4))
    identity = {"model": 1}
    with pytest.raises(KeyboardInterrupt):
        run(broken, tmp_path, save_every=1, identity=identity)
    (file,) = (tmp_path / "partial").iterdir()
    saved = file.read_bytes()
    counted = dataclasses.replace(dataset, source=KnowsSizes(SIZES))
    assert without_time(run(counted, tmp_path, save_every=1, identity=identity)) == expected
    assert 0 < len(counted.source.read) < len(SIZES)
    assert not file.exists()
    file.write_bytes(saved[:100])
    with pytest.raises(SammiError, match=r"images\.npz: damaged"):
        run(counted, tmp_path, identity=identity)
    file.write_bytes(saved)
    counted.source.read.clear()
    other = run(counted, tmp_path, save_every=1, identity={"model": 2})
    assert without_time(other) == expected
    assert len(counted.source.read) == len(SIZES), "the partial result of another model was taken"


def test_bad_labels(dataset, tmp_path):
    def with_label(label):
        source = Images(SIZES[:1])
        source.examples[0]["label"] = label(source.examples[0]["label"])
        return dataclasses.replace(dataset, source=source)

    with pytest.raises(SammiError, match=r"a/0\.jpg: label 77 is neither"):
        run(with_label(lambda x: np.where(x == 1, 77, x)), tmp_path)
    with pytest.raises(SammiError, match=r"a/0\.jpg: the image is .*the same size"):
        run(with_label(lambda x: x[:-1]), tmp_path)
    with pytest.raises(SammiError, match="batch_size=3"):
        run(dataset, tmp_path, 8, batch_size=3)


def test_written_images(dataset, tmp_path):
    run(dataset, tmp_path, save_labels=True, panels=2)
    files = sorted((tmp_path / "labels" / "images").iterdir())
    assert [file.name for file in files] == [f"a__{i}.png" for i in range(len(SIZES))]
    for file, prediction in zip(files, reference(dataset)[1], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), prediction)
    panels = list((tmp_path / "panels" / "images").iterdir())
    assert len(panels) == 2
    with Image.open(panels[0]) as panel:
        assert panel.size[0] > 3 * SIZES[0][1]


def test_buckets():
    rng = np.random.default_rng(1)
    sizes = [tuple(map(int, size)) for size in rng.integers(1, 2600, (300, 2))]
    for limit in (1, 4, 9):
        bucket_of = choose_buckets(sizes, limit)
        assert len(set(bucket_of.values())) <= limit
        assert all(b[0] >= s[0] and b[1] >= s[1] for s, b in bucket_of.items())
    plan = plan_batches(sizes, 7, 4)
    assert sorted(i for batch in plan for i in batch.indices) == list(range(300))
    assert all(len(batch.indices) <= 7 for batch in plan)
    assert set(choose_buckets([(100, 100), (120, 90)], 8).values()) == {(128, 128)}
    with pytest.raises(SammiError, match="max_buckets=0"):
        plan_batches(sizes, 7, 0)


def test_sums_do_not_overflow():
    """Nor on the way to other processes, which JAX does in 32 bits."""
    big = np.uint32(2**32 - 3)
    counts = Counts(np.full((2, 2), big), np.full((3, 2), 7, np.uint32), big, big, np.uint32(1))
    sums = zero_sums(2)
    for _ in range(5):
        sums = add_counts(sums, jax.device_put(counts))
    saved = from_arrays(to_arrays(sums))
    words = jax.tree.map(lambda array: jnp.asarray(_as_words(array)), sums)
    for found in (saved, jax.tree.map(_from_words, words, sums)):
        assert found.confusion.tolist() == [[5 * int(big)] * 2] * 2
        assert found.boundary.tolist() == [[35, 35]] * 3
        assert (int(found.points), int(found.images)) == (5 * int(big), 5)


@pytest.mark.parametrize("distance", [1, 4, 40])
def test_region_boundary_equals_erosion(distance):
    rng = np.random.default_rng(distance)
    labels = np.kron(rng.integers(0, 4, (5, 6)), np.ones((9, 11), int))
    found = np.asarray(region_boundary(jnp.asarray(labels), jnp.asarray(distance)))
    expected = np.zeros(labels.shape, bool)
    for value in range(4):
        mask = labels == value
        expected |= mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), distance)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("n", "out"), [(48, 96), (640, 481), (7, 7), (5, 1)])
def test_bilinear_taps_are_the_matrix(n, out):
    taps, weights = bilinear_taps(n, out, out + 3)
    matrix = np.zeros((out, n), np.float32)
    for row in range(out):
        matrix[row, taps[row, 0]] += 1 - weights[row]
        matrix[row, taps[row, 1]] += weights[row]
    np.testing.assert_allclose(matrix, resize_matrix(n, out), atol=1e-6)
    assert taps.shape == (out + 3, 2)


def test_papers_table():
    def result(name, value, column="", domain=None):
        names = {"dataset": name, "column": column, "domain": domain}
        return names | {"miou": value, "miou_union": value}

    table = papers_table(
        [
            result("ade20k_150", 0.318, "A-150"),
            result("mess_paxray_lungs", 0.2, domain="medical"),
            result("mess_paxray_bones", 0.4, domain="medical"),
            result("mess_suim", 0.6, domain="general"),
        ]
    )
    assert "| - | - | 31.8 | - | - | - |" in table
    assert "| 60.0 | 30.0 | 45.0 |" in table  # PAXRay's tasks are one set of the mean
    assert papers_table([result("os48/val_seen", 0.5)]) is None


def test_resumes_in_a_bucket(bucket, dataset, tmp_path):
    expected = without_time(run(dataset, tmp_path / "whole"))
    broken = dataclasses.replace(dataset, source=KnowsSizes(SIZES, stop_at=4))
    with pytest.raises(KeyboardInterrupt):
        run(broken, bucket, save_every=1)
    assert list(list_objects(bucket)) == ["partial/images.npz"]
    counted = dataclasses.replace(dataset, source=KnowsSizes(SIZES))
    assert without_time(run(counted, bucket, save_every=1)) == expected
    assert 0 < len(counted.source.read) < len(SIZES)
    assert list_objects(bucket / "partial") == {}
