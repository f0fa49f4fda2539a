"""Masks from elsewhere: the model takes them in the place of SAM's, and evaluation gives them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.experiment import EvalConfig, MeshConfig
from sammi_jax.config.model import view_layout
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.data.openshapes import build_tokenizer
from sammi_jax.errors import SammiError
from sammi_jax.evaluation.evaluator import evaluate
from sammi_jax.evaluation.given_masks import GivenMasks, degrade
from sammi_jax.inference.forward import forward_input
from sammi_jax.inference.inputs import canvas_masks, segmenter_input
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.proposals import MASK_SCALE
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.weights.params import flat_params
from tests.test_sammi import CATSEG, NUM_CLASSES, SAMMI, _randomized


def _iou(a, b):
    return (a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))


@pytest.fixture(scope="module")
def model():
    return _randomized(dataclasses.replace(SAMMI, sliding=None), seed=3)


def _run(model, inputs):
    ids = jnp.asarray(np.random.default_rng(2).integers(1, 20, (NUM_CLASSES, 1, 6)))
    model = nnx.merge(*jax.tree.map(jnp.asarray, nnx.split(model)))
    text = ClassTexts(model.encode_text(ids), jnp.ones(NUM_CLASSES, bool))
    layout = view_layout(model.config)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda s, x: forward_input(nnx.merge(graphdef, s), x, text, layout))
    return run(jax.tree.map(jnp.asarray, state), inputs)


def test_the_models_own_masks_given_back_change_nothing(model, rng):
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    own = _run(model, segmenter_input(image, model.config))
    assert own.proposals.masks.any()
    found = own.proposals
    given = tuple(np.asarray(x) for x in (found.masks, found.valid, found.quality))
    again = _run(model, segmenter_input(image, model.config, given))
    np.testing.assert_allclose(again.logits, own.logits, atol=1e-6)
    np.testing.assert_allclose(again.regions.strength, own.regions.strength, atol=1e-6)
    nothing = (given[0], np.zeros_like(given[1]), given[2])
    shut = _run(model, segmenter_input(image, model.config, nothing))
    assert np.abs(shut.logits - own.logits).max() > 1e-3
    assert not shut.proposals.valid.any()


def test_masks_lie_where_they_were_drawn():
    mask = np.zeros((1, 40, 80), bool)
    mask[0, :20, 60:] = True
    config = dataclasses.replace(SAMMI, sliding=None)
    side = MASK_SCALE * view_layout(config).canvas
    on_canvas, valid, quality = canvas_masks(mask, (40, 80), config, 3, np.array([0.9]))
    np.testing.assert_allclose(quality, [[0.9, 0.75, 0.75]])
    np.testing.assert_array_equal(valid, [[True, False, False]])
    expected = np.zeros((side, side), bool)
    expected[: side // 2, 3 * side // 4 :] = True
    np.testing.assert_array_equal(on_canvas[0, 0], expected)


@pytest.mark.parametrize(
    ("config", "shape", "slots", "message"),
    [
        (SAMMI, (2, 9, 8), 2, r"give \[n, height, width\] of the image's 8 x 8"),
        (SAMMI, (8, 8), 2, r"give \[n, height, width\]"),
        (SAMMI, (3, 8, 8), 2, "3 masks, but there is room for 2"),
        (CATSEG, (2, 8, 8), 2, "is a CAT-Seg, which takes none"),
    ],
)
def test_masks_that_do_not_fit_are_an_error(config, shape, slots, message):
    with pytest.raises(SammiError, match=message):
        canvas_masks(np.zeros(shape, bool), (8, 8), config, slots)


@pytest.mark.parametrize("quality", [[0.5], [0.5, 1.5], [0.5, float("nan")]])
def test_qualities_that_do_not_fit_are_an_error(quality):
    masks = np.ones((2, 8, 8), bool)
    with pytest.raises(SammiError, match=r"one number in 0..1 for each of the 2 masks"):
        canvas_masks(masks, (8, 8), SAMMI, 2, np.array(quality))


@pytest.mark.parametrize("iou", [0.9, 0.7, 0.5])
def test_degraded_masks_have_the_iou_that_was_asked_for(iou, rng):
    y, x = np.mgrid[:64, :64]
    masks = np.stack([(y - 30) ** 2 + (x - 30) ** 2 < 400, (y > 40) & (x < 35), y < 50])
    worse = degrade(masks, iou, rng)
    np.testing.assert_allclose(_iou(masks, worse), iou, atol=0.03)
    assert (worse & ~masks)[:2].any(axis=(1, 2)).all()  # pixels are gained as well as lost
    np.testing.assert_array_equal(degrade(masks, 1.0, rng), masks)


def test_the_masks_of_a_scene():
    dataset = open_dataset("os48/val_seen", 4)
    true = GivenMasks(dataset, SAMMI, EvalConfig(masks="true"))(1, (96, 96))
    assert 4 <= len(true) <= 8
    np.testing.assert_array_equal(true.sum(axis=0), 1)  # every pixel has one instance
    label = dataset.source[1]["label"]
    assert all(len(np.unique(label[mask])) == 1 for mask in true)
    parts = GivenMasks(dataset, SAMMI, EvalConfig(masks="parts"))(1, (96, 96))
    inside = np.einsum("phw,thw->pt", parts.astype(int), true.astype(int)) > 0
    np.testing.assert_array_equal(inside.sum(axis=1), 1)  # a part belongs to one instance
    assert len(parts) > 5 * len(true)
    assert len(GivenMasks(dataset, SAMMI, EvalConfig(masks="none"))(1, (96, 96))) == 0
    assert GivenMasks(dataset, SAMMI, EvalConfig())(1, (96, 96)) is None
    worse = GivenMasks(dataset, SAMMI, EvalConfig(masks="true", mask_iou=0.6))
    np.testing.assert_array_equal(worse(1, (96, 96)), worse(1, (96, 96)))
    assert abs(_iou(true, worse(1, (96, 96))).mean() - 0.6) < 0.05


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (EvalConfig(masks="true"), CATSEG, "this model takes no masks"),
        (EvalConfig(masks="own", mask_iou=0.8), SAMMI, "with eval.masks=true or parts"),
        (EvalConfig(masks="true", mask_iou=0.0), SAMMI, "give a share above 0"),
    ],
)
def test_masks_that_cannot_be_given_are_an_error(config, model, message):
    with pytest.raises(SammiError, match=message):
        GivenMasks(open_dataset("os48/val_seen", 4), model, config)


@pytest.mark.slow
def test_an_evaluation_with_true_masks(tmp_path):
    """Scenes of 96 pixels, evaluated with their instances and with every mask shut."""
    config = dataclasses.replace(SAMMI, sliding=None)
    tokenizer = Tokenizer(build_tokenizer())
    text = dataclasses.replace(config.clip.text, vocab_size=tokenizer.vocab_size, context_length=12)
    config = dataclasses.replace(config, clip=dataclasses.replace(config.clip, text=text))
    params = flat_params(_randomized(config, seed=3))
    predictor = Segmenter(config, params, lambda: tokenizer)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    dataset = open_dataset("os48/val_seen", 2)
    counts = []
    for masks in ("true", "none"):
        evaluation = EvalConfig(batch_size=2, masks=masks, flip=True)
        record = evaluate(predictor, dataset, evaluation, mesh, tmp_path / masks, {})
        counts.append(record["masks_per_image"])
    instances = [len(dataset.source.regions(index, "true")) for index in range(2)]
    assert counts == [np.mean(instances), 0.0]
