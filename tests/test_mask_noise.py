"""Noise on masks: each kind alone against scipy and numpy, and what it does to a training step."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sammi_jax.config.experiment import MaskNoiseConfig, SegmentConfig, TrainConfig
from sammi_jax.config.fields import override
from sammi_jax.errors import SammiError
from sammi_jax.layers.init import Keys
from sammi_jax.ops.mask_noise import add_noise
from sammi_jax.parallel.batch import Batch
from sammi_jax.training.tasks.segment import SegmentRules
from sammi_jax.weights.params import abstract_params, build, flat_params
from tests.test_sammi import CATSEG, NUM_CLASSES, SAMMI

SHAPE, RADIUS, MAX_SHIFT = (2, 40, 12, 10), 2, 3
RATES = {"drop": 0.0, "dilate": 0.0, "erode": 0.0, "shift": 0.0}


@pytest.fixture
def masks(rng):
    masks = rng.random((*SHAPE[:2], 6, 5)) < 0.4
    return masks.repeat(2, axis=2).repeat(2, axis=3)  # blobs, so that erosion leaves something


@pytest.fixture
def valid(rng, masks):
    return (rng.random(SHAPE[:2]) < 0.8) & masks.any((2, 3))


def noisy(masks, valid, seed=0, **rates):
    """Masks and validity."""
    return noisy_and_quality(masks, valid, seed, **rates)[:2]


def noisy_and_quality(masks, valid, seed=0, **rates):
    call = partial(add_noise, radius=RADIUS, max_shift=MAX_SHIFT, **{**RATES, **rates})
    quality = np.linspace(0.5, 1.0, valid.size, dtype=np.float32).reshape(valid.shape)
    found = jax.jit(call)(masks, valid, quality, jax.random.key(seed))
    return jax.tree.map(np.asarray, (*found, quality))


def by_mask(operation, masks):
    return np.stack([[operation(mask) for mask in image] for image in masks])


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("dilate", ndimage.binary_dilation),
        ("erode", partial(ndimage.binary_erosion, border_value=1)),
    ],
)
def test_dilation_and_erosion_are_scipys(masks, valid, kind, operation):
    square = np.ones((2 * RADIUS + 1,) * 2, bool)
    expected = by_mask(lambda mask: operation(mask, square), masks) & valid[..., None, None]
    found, kept = noisy(masks, valid, **{kind: 1.0})
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(kept, expected.any((2, 3)))
    assert kept.any()
    assert (found != masks)[kept].any()


def moved(mask, dy, dx):
    padded = np.pad(mask, MAX_SHIFT)
    rows, columns = MAX_SHIFT - dy, MAX_SHIFT - dx
    return padded[rows : rows + mask.shape[0], columns : columns + mask.shape[1]]


def test_shifts_are_those_of_numpy_and_differ(masks, valid):
    found, kept = noisy(masks, valid, shift=1.0)
    steps = range(-MAX_SHIFT, MAX_SHIFT + 1)
    used = set()
    for index in zip(*np.nonzero(kept), strict=True):
        fits = {
            (dy, dx)
            for dy in steps
            for dx in steps
            if (moved(masks[index], dy, dx) == found[index]).all()
        }
        assert fits, index
        used |= fits if len(fits) == 1 else set()
    assert {dy for dy, _ in used} == {dx for _, dx in used} == set(steps)
    assert not found[~kept].any()
    assert not kept[~valid].any()


def test_a_mask_that_leaves_the_frame_is_invalid():
    masks = np.zeros((1, 64, 12, 10), bool)
    masks[..., 0, 0] = True
    found, kept = noisy(masks, np.ones((1, 64), bool), shift=1.0)
    np.testing.assert_array_equal(kept, found.any((2, 3)))
    assert 0 < kept.sum() < 64


def test_drop(masks, valid):
    found, kept = noisy(masks, valid, drop=1.0)
    assert not kept.any()
    assert not found.any()
    found, kept = noisy(masks, valid, drop=0.5)
    assert 0.3 < kept.sum() / valid.sum() < 0.7
    np.testing.assert_array_equal(found, masks & kept[..., None, None])


def test_rates_of_zero_change_nothing(masks, valid):
    masks = masks & valid[..., None, None]
    masks[0, 0], valid[0, 0] = False, True  # a valid mask without a pixel stays valid too
    found, kept = noisy(masks, valid)
    np.testing.assert_array_equal(found, masks)
    np.testing.assert_array_equal(kept, valid)


def test_the_quality_of_a_changed_mask_falls_with_its_iou(masks, valid):
    rates = {"dilate": 0.3, "erode": 0.3, "shift": 0.2}
    found, kept, told, quality = noisy_and_quality(masks & valid[..., None, None], valid, **rates)
    shared = (found & masks).sum((2, 3)) / np.maximum((found | masks).sum((2, 3)), 1)
    same = (found == masks).all((2, 3))
    np.testing.assert_allclose(told[kept], (quality * shared)[kept], rtol=1e-6)
    np.testing.assert_array_equal(told[kept & same], quality[kept & same])
    assert (kept & same).any()
    assert (told < 0.9 * quality)[kept].any()


def test_shares_of_a_mixture():
    masks = np.zeros((4, 500, 9, 9), bool)
    masks[..., 4, 2:7] = masks[..., 2:7, 4] = True  # a cross: no two kinds give the same
    masks[..., 3:6, 3:6] = True
    rates = {"drop": 0.1, "dilate": 0.2, "erode": 0.3, "shift": 0.4}
    call = partial(add_noise, radius=1, max_shift=1, **rates)
    ones = jnp.ones((4, 500))
    found, kept, _ = call(jnp.asarray(masks), ones.astype(bool), ones, jax.random.key(1))
    area = np.asarray(found).sum((2, 3))
    counts = {
        "drop": (~np.asarray(kept)).mean(),
        "dilate": (area > 13).mean(),
        "erode": ((area > 0) & (area < 13)).mean(),
        "shift": (area == 13).mean(),
    }
    for kind, rate in rates.items():
        assert counts[kind] == pytest.approx(rate, abs=0.04), kind


def test_noise_follows_from_the_key(masks, valid):
    rates = {"drop": 0.2, "dilate": 0.2, "erode": 0.2, "shift": 0.2}
    first, again, other = (noisy(masks, valid, seed, **rates) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"drop": -0.1}, "mask_noise.drop=-0.1: give a rate between 0 and 1"),
        ({"shift": 1.5}, "mask_noise.shift=1.5: give a rate between 0 and 1"),
        ({"erode": float("nan")}, "mask_noise.erode=nan"),
        ({"drop": 0.5, "erode": 0.6}, "must not be above 1: drop 0.5 [+] erode 0.6"),
        ({"radius": 0}, "mask_noise.radius=0: give at least 1 pixel"),
        ({"max_shift": -1}, "mask_noise.max_shift=-1"),
    ],
)
def test_wrong_rates_raise_an_error(value, message):
    with pytest.raises(SammiError, match=message) as error:
        MaskNoiseConfig(**value)
    assert "\n" not in str(error.value)


def test_rates_are_set_on_the_command_line():
    config = TrainConfig(task=SegmentConfig(model=SAMMI))
    config = override(config, "task.mask_noise={'drop': 0.3, 'dilate': 0.7}")
    assert config.task.mask_noise == MaskNoiseConfig(drop=0.3, dilate=0.7)
    with pytest.raises(SammiError, match="above 1"):
        override(config, "task.mask_noise.erode=0.1")


def test_a_model_without_masks_has_none_to_disturb():
    with pytest.raises(SammiError, match=r"task\.mask_noise: this model has no SAM masks"):
        SegmentRules(SegmentConfig(model=CATSEG, mask_noise=MaskNoiseConfig()), 255, False)


@pytest.fixture(scope="module")
def step():
    """``(*tasks) -> metrics`` of one batch for each, with the same random weights.

    What ``only`` leaves out is not compiled.
    """
    rng = np.random.default_rng(5)
    rules = SegmentRules(SegmentConfig(model=SAMMI), 255, photographs=False)
    params = {
        path: np.asarray(value) + 0.1 * rng.normal(size=value.shape).astype(np.float32)
        for path, value in flat_params(rules.make(Keys(0))).items()
    }
    batch = Batch(
        {
            "images": rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
            "labels": rng.integers(0, NUM_CLASSES, (2, 32, 32), np.int32),
        },
        {"token_ids": rng.integers(1, 20, (NUM_CLASSES, 1, 6))},
    )

    def run(*tasks, only=None):
        every = [SegmentRules(task, 255, photographs=False) for task in tasks]

        @jax.jit  # one program: what the losses share is compiled once
        def losses(params, batch, key):
            found = [loss(rules, params, batch, key)[1] for rules in every]
            return [{name: metrics[name] for name in only or metrics} for metrics in found]

        return jax.tree.map(np.asarray, losses(params, batch, jax.random.key(7)))

    def loss(rules, params, batch, key):
        make = lambda: rules.make(Keys(0))  # noqa: E731
        names = abstract_params(make)
        return rules.loss(build(make, {name: params[name] for name in names}), batch, key)

    return run


@pytest.mark.slow
def test_the_masks_of_a_training_step_are_disturbed(step):
    # Without SMAgg, which makes one mask of several whether some are lost or not.
    task = SegmentConfig(model=replace(SAMMI, masks=replace(SAMMI.masks, smagg=None)))
    noises = (None, MaskNoiseConfig(drop=0.5), MaskNoiseConfig(drop=1.0))
    tasks = [replace(task, mask_noise=noise) for noise in noises]
    plain, half, none = (found["masks"] for found in step(*tasks, only=("masks",)))
    assert plain > half > none == 0


@pytest.mark.slow
def test_the_loss_of_a_training_step_with_noise(step):
    task = SegmentConfig(model=SAMMI)
    mixed = MaskNoiseConfig(drop=0.3, dilate=0.3, erode=0.2, shift=0.2)
    noises = (None, MaskNoiseConfig(), MaskNoiseConfig(drop=1.0), mixed)
    catseg = SegmentConfig(model=replace(SAMMI, masks=None))
    plain, off, dropped, on, without = step(
        *(replace(task, mask_noise=noise) for noise in noises), catseg
    )
    assert on["segmentation_loss"] != plain["segmentation_loss"]
    assert on["tspp_loss"] == plain["tspp_loss"]
    assert off == plain
    assert plain["masks"] > 0
    assert dropped["masks"] == 0
    expected = without["segmentation_loss"]
    assert dropped["segmentation_loss"] == pytest.approx(expected, rel=1e-6)
    assert plain["segmentation_loss"] != pytest.approx(expected, rel=1e-4)
