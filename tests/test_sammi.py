"""The assembled model: the two zero-injection tests, the switches, one program, and the sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.model import (
    SAM_SIZES,
    SEGMENTER_SIZES,
    AggregatorConfig,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    DmiConfig,
    MaskConfig,
    MaskFilterConfig,
    SamConfig,
    SegmenterConfig,
    SlidingConfig,
    TsppConfig,
    view_layout,
)
from sammi_jax.errors import SammiError
from sammi_jax.inference.forward import ViewScores, blend_logits, forward_input
from sammi_jax.inference.inputs import segmenter_input, stack_inputs
from sammi_jax.layers.init import Keys
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.proposals import MASK_SCALE
from sammi_jax.models.sammi import Sammi
from sammi_jax.training.forward import forward_crops
from sammi_jax.weights.params import abstract_params, build, flat_params
from tests.parity import assert_parity

KEEP_ALL = MaskFilterConfig(min_iou=-1e9, min_stability=0.0, min_area=0.0, max_area=1.0)
MASKS = MaskConfig(
    sam=SamConfig(
        image_size=64,
        patch_size=8,
        width=32,
        num_layers=2,
        num_heads=2,
        num_stages=1,
        window_size=3,
        out_channels=16,
        decoder_heads=2,
        decoder_mlp_dim=32,
        iou_head_hidden_dim=16,
        mask_in_channels=8,
    ),
    tspp=TsppConfig(num_points=6, dim=8, scale=10.0, min_score=0.0),
    filter=KEEP_ALL,
    dmi=DmiConfig(num_heads=2),
)
CATSEG = SegmenterConfig(
    clip=ClipConfig(
        vision=ClipVisionConfig(image_size=24, patch_size=8, width=32, num_layers=3, num_heads=2),
        text=ClipTextConfig(vocab_size=20, context_length=6, width=16, num_layers=1, num_heads=2),
        embed_dim=16,
    ),
    aggregator=AggregatorConfig(
        hidden_dim=16, num_layers=1, num_heads=2, window_size=2, grid_size=4, appearance_dim=8,
        text_dim=8, decoder_dims=(32, 16), decoder_guidance_dims=(12, 8),
        decoder_guidance_proj_dims=(8, 4), pad_length=8,
    ),
    crop_size=32,
    clip_size=32,
    taps=(0, 1),
    sliding=SlidingConfig(output_size=48, stride=16),
)  # fmt: skip
SAMMI = dataclasses.replace(CATSEG, masks=MASKS)
NUM_CLASSES = 3


def _randomized(config, seed=0):
    """A model whose every parameter is random, biases and zero-initialized layers too."""
    make = lambda: Sammi(config, rngs=Keys(seed))  # noqa: E731
    rng = np.random.default_rng(seed)
    params = {
        path: jnp.asarray(np.asarray(value) + 0.1 * rng.normal(size=value.shape).astype("f"))
        for path, value in flat_params(make()).items()
    }
    return build(make, params)


def _without_masks(model):
    """CAT-Seg with the same weights."""
    config = dataclasses.replace(model.config, masks=None)
    make = lambda: Sammi(config, rngs=Keys(0))  # noqa: E731
    params = flat_params(model)
    return build(make, {path: params[path] for path in abstract_params(make)})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(1)
    return [
        rng.integers(0, 256, (50, 70, 3), np.uint8),
        rng.integers(0, 256, (40, 40, 3), np.uint8),
    ]


def _forward(graphdef, state, inputs, ids):
    model = nnx.merge(graphdef, state)
    mask = jnp.ones(NUM_CLASSES, bool)
    text = ClassTexts(model.encode_text(ids), mask)
    return forward_input(model, inputs, text, view_layout(model.config))


# One jitted function for all tests: models of one configuration share a compiled program.
_run = jax.jit(_forward, static_argnums=0)
# As users compile (`tests.xla_flags`): two programs with the same products give the same bits.
_run_as_users = jax.jit(
    _forward, static_argnums=0, compiler_options={"xla_cpu_use_fusion_emitters": True}
)


def _predict(model, pictures, run=_run):
    inputs = stack_inputs([segmenter_input(picture, model.config) for picture in pictures])
    ids = np.random.default_rng(2).integers(1, 20, (NUM_CLASSES, 1, 6))
    graphdef, state = nnx.split(model)
    state, inputs, ids = jax.device_put((state, inputs, ids))
    with jax.transfer_guard("disallow"):  # no host round trip in the program
        return run(graphdef, state, inputs, ids)


@pytest.mark.parametrize(
    "sliding",
    [
        pytest.param(CATSEG.sliding, id="windows", marks=pytest.mark.slow),
        pytest.param(None, id="plain"),
    ],
)
def test_untrained_injection_is_catseg(pictures, sliding):
    model = Sammi(dataclasses.replace(SAMMI, sliding=sliding), rngs=Keys(0))
    ours = _predict(model, pictures, _run_as_users)
    reference = _predict(_without_masks(model), pictures, _run_as_users)
    assert ours.proposals.valid.any()
    np.testing.assert_array_equal(ours.logits, reference.logits)


def test_trained_injection_without_a_valid_mask_is_catseg(pictures):
    none_valid = dataclasses.replace(MASKS, filter=MaskFilterConfig(min_iou=1e9))
    model = _randomized(dataclasses.replace(SAMMI, masks=none_valid, sliding=None))
    ours = _predict(model, pictures, _run_as_users)
    reference = _predict(_without_masks(model), pictures, _run_as_users)
    assert not ours.proposals.valid.any()
    np.testing.assert_array_equal(ours.logits, reference.logits)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tspp": None, "grid_points": 3},
        {"smagg": None},
        pytest.param({"dmi": DmiConfig(low=False, num_heads=2)}, marks=pytest.mark.slow),
        pytest.param({"dmi": DmiConfig(high=False, num_heads=2)}, marks=pytest.mark.slow),
        pytest.param({"dmi": DmiConfig(decoder=False, num_heads=2)}, marks=pytest.mark.slow),
        pytest.param({"dmi": DmiConfig(smoothing=False, num_heads=2)}, marks=pytest.mark.slow),
    ],
    ids=["all", "no tspp", "no smagg", "no low", "no high", "no decoder", "no smoothing"],
)
def test_every_switch_gives_a_model_that_uses_its_masks(pictures, changes):
    masks = dataclasses.replace(MASKS, **changes)
    model = _randomized(dataclasses.replace(SAMMI, masks=masks, sliding=None))
    output = _predict(model, pictures)
    assert np.isfinite(output.logits).all()
    assert output.proposals.valid.any(axis=1).all()
    catseg = _predict(_without_masks(model), pictures)
    assert np.abs(output.logits - catseg.logits).max() > 1e-4
    assert (output.tspp_logits is None) == ("tspp" in changes)


def test_without_injection_the_masks_do_nothing(pictures):
    off = dataclasses.replace(
        MASKS, dmi=DmiConfig(low=False, high=False, decoder=False, smoothing=False)
    )
    model = _randomized(dataclasses.replace(SAMMI, masks=off, sliding=None))
    assert not [path for path in flat_params(model) if path.startswith("dmi")]
    reference = _predict(_without_masks(model), pictures)
    assert_parity(_predict(model, pictures).logits, reference.logits, 1e-6, "injection off")


def test_images_of_a_batch_do_not_see_each_other(pictures):
    model = _randomized(SAMMI)
    output = _predict(model, pictures)
    other = _predict(model, [255 - pictures[0], pictures[1]])
    assert np.abs(output.logits[0] - other.logits[0]).max() > 1e-4
    assert_parity(output.logits[1], other.logits[1], 1e-6, "second image, first one changed")
    np.testing.assert_array_equal(output.proposals.masks[1], other.proposals.masks[1])


def test_masks_lie_inside_the_picture_and_points_in_the_unit_square(pictures):
    proposals = _predict(_randomized(SAMMI), pictures).proposals
    side = 6 * MASK_SCALE
    assert proposals.masks.shape == (2, 6, side, side)
    assert ((proposals.points > 0) & (proposals.points < 1)).all()
    assert not proposals.masks[~proposals.valid].any()


def test_training_forward_has_gradients_where_something_trains():
    model = _randomized(SAMMI, seed=3)  # its SAM finds something
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.uniform(0, 255, (2, 32, 32, 3)).astype("f"))
    ids = jnp.asarray(rng.integers(1, 20, (NUM_CLASSES, 1, 6)))

    def loss(params):
        model = nnx.merge(graphdef, params, rest)
        output = forward_crops(model, images, ids, jnp.ones(NUM_CLASSES, bool), 2)
        loss = (output.logits**2).mean() + (output.tspp_logits**2).mean()
        return loss, output.proposals.masks

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert found.any()
    grads = {
        "/".join(map(str, path)): float(np.abs(value.get_value()).max())
        for path, value in nnx.to_flat_state(gradients)
    }
    zero = {path for path, value in grads.items() if value == 0}
    assert all(path.startswith("sam/") for path in zero if "sam" in path)
    assert {p for p in grads if p.startswith("sam/")} <= zero, "SAM is frozen"
    for needed in ("tspp/visual/kernel", "tspp/bias", "dmi/low_injection/out/kernel",
                   "dmi/evidence_convs/2/kernel", "upsample2/kernel",
                   "aggregator/head/kernel", "clip/vision"):  # fmt: skip
        assert any(p.startswith(needed) and v > 0 for p, v in grads.items()), needed


def _probabilities(model, inputs, text, class_mask):
    layout = view_layout(model.config)
    output = forward_input(model, inputs, ClassTexts(text, class_mask), layout)
    scores = ViewScores(output.logits, output.proposals, output.regions)
    return blend_logits(scores, model.config, layout), output.proposals


def test_padded_classes_change_nothing(pictures):
    model = _randomized(CATSEG)
    inputs = jax.tree.map(jnp.asarray, segmenter_input(pictures[0], model.config))
    text = jax.random.normal(jax.random.key(0), (5, 1, 16))
    three, _ = _probabilities(model, inputs, text[:3], jnp.ones(3, bool))
    five, _ = _probabilities(model, inputs, text, jnp.arange(5) < 3)
    assert_parity(five[:, :3], three, 1e-5, "padded classes")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_size": 40}, "clip_size 40"),
        ({"crop_size": 33}, "crop_size 33"),
        ({"taps": (1, 0)}, "taps"),
        ({"sliding": SlidingConfig(50, 16)}, "sliding.output_size 50"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(SammiError, match=words):
        Sammi(dataclasses.replace(CATSEG, **changes), rngs=Keys(0))


@pytest.mark.parametrize(("size", "count"), [("vitb16", 154_289_378), ("vitl14_336", 433_726_946)])
def test_published_parameter_counts(size, count):
    config = SEGMENTER_SIZES[size]
    params = abstract_params(lambda: Sammi(config, rngs=Keys(0)))
    assert sum(p.size for p in params.values()) == count


def test_full_sizes_have_the_published_output_shape():
    config = dataclasses.replace(SEGMENTER_SIZES["vitl14_336"], masks=MaskConfig(SAM_SIZES["vith"]))
    model = nnx.eval_shape(lambda: Sammi(config, rngs=Keys(0)))
    graphdef, state = nnx.split(model)
    inputs = segmenter_input(np.zeros((48, 64, 3), np.uint8), config)

    def run(state, inputs, ids):
        model = nnx.merge(graphdef, state)
        return _probabilities(model, inputs, model.encode_text(ids), jnp.ones(9, bool))

    probabilities, proposals = jax.eval_shape(run, state, inputs, jnp.zeros((9, 1, 77), int))
    assert probabilities.shape == (1, 9, 640, 640)
    assert proposals.masks.shape == (1, 64, 320, 320)
