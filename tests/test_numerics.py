"""What changes the bundled model's answer by rounding alone: batch, padding, order of classes."""

import numpy as np
import pytest

from sammi_jax.convert.api import convert
from sammi_jax.data.openshapes import OpenShapes
from sammi_jax.inference.inputs import stack_inputs
from sammi_jax.inference.segmenter import load
from sammi_jax.weights.bundled import DEFAULT
from sammi_jax.weights.model_folder import describe
from tests.parity import assert_parity

COUNT = 44  # of classes, in 48 slots


@pytest.fixture(scope="module")
def model():
    return load(DEFAULT)


@pytest.fixture(scope="module")
def scenes():
    source = OpenShapes("val_seen", "os48")
    return [np.asarray(source[index]["image"]) for index in range(2)]


@pytest.fixture(scope="module")
def names():
    return list(OpenShapes("val_seen", "os48").view.class_names[:COUNT])


@pytest.fixture(scope="module")
def scores(model, scenes, names):
    """Of each scene alone, float ``[2, t, O, O]``."""
    return np.stack([model.segment(image, names).canvas_scores for image in scenes])


def test_the_order_of_classes_permutes_the_scores(model, scenes, names, scores):
    order = np.random.default_rng(0).permutation(COUNT)
    assert (order != np.arange(COUNT)).any()
    found = model.segment(scenes[0], [names[index] for index in order])
    assert_parity(found.canvas_scores, scores[0][order], 1e-5, "classes in another order")
    first = model.segment(scenes[0], names)
    assert [found.class_names[i] for i in np.unique(found.labels)] != [
        found.class_names[i] for i in np.unique(first.labels)
    ]  # so that the next line says something
    same = np.array(order)[found.labels] == first.labels
    assert same.mean() > 0.999


@pytest.mark.slow
def test_the_batch_changes_nothing(model, scenes, names, scores):
    batch = stack_inputs([model.prepare(image) for image in scenes])
    found = np.asarray(model.predict_batch(batch, names).probabilities)
    assert_parity(found, scores, 1e-5, "a batch of two")


@pytest.mark.slow
def test_padding_of_the_class_axis_changes_nothing(model, scenes, names, scores, monkeypatch):
    monkeypatch.setattr("sammi_jax.inference.text_prompted.CLASS_BUCKET", 56)
    model = load(DEFAULT)
    assert len(model.encode_classes(names).mask) == 56
    found = model.segment(scenes[0], names)
    assert_parity(found.canvas_scores, scores[0], 1e-5, "56 slots")


@pytest.mark.slow
@pytest.mark.parametrize(("stored", "limit"), [("float16", 1e-6), ("bfloat16", 5e-2)])
def test_weights_of_16_bits(scenes, names, scores, tmp_path, stored, limit):
    """They are read, converted and used; the bundled ones are in float16 already."""
    folder = convert("sammi", DEFAULT, tmp_path / "half", dtype=stored)
    again = convert("sammi", folder, tmp_path / "again", dtype=stored)
    assert (folder / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert stored in {tensor.dtype for tensor in describe(folder).tensors.values()}
    found = load(folder).segment(scenes[0], names)
    assert (assert_within(found.canvas_scores, scores[0], limit) > 1e-4) == (stored == "bfloat16")


@pytest.mark.slow
def test_products_in_bfloat16(scenes, names, scores):
    found = load(DEFAULT, "bfloat16").segment(scenes[0], names)
    assert assert_within(found.canvas_scores, scores[0], 0.1) > 1e-4


def assert_within(found, want, limit):
    """The relative L2 error, which is below a limit."""
    error = np.linalg.norm(found - want) / np.linalg.norm(want)
    assert error < limit
    return error
