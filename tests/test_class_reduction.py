"""Long class lists: only the classes that an image supports are decoded, and read out."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import sammi_jax
from sammi_jax.cli.main import main
from sammi_jax.config.experiment import EvalConfig
from sammi_jax.config.model import view_layout
from sammi_jax.convert.api import read_source
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.errors import SammiError
from sammi_jax.inference.forward import image_views, sam_views
from sammi_jax.inference.inputs import segmenter_input, stack_inputs
from sammi_jax.inference.readout import best_class
from sammi_jax.inference.zero_shot import load_predictor
from sammi_jax.models.aggregator import ABSENT_LOGIT
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.cost_map import cost_map
from sammi_jax.weights.model_folder import write_model
from tests.parity import assert_parity
from tests.test_sammi import CATSEG, SAMMI, _randomized

NUM_CLASSES, KEPT = 7, 3
ONE_VIEW = dataclasses.replace(SAMMI, sliding=None)  # compiles in half the time
SHOWN = ["striped red thing", "striped blue thing", "dotted orange thing", "blue waves"]  # in it


@partial(jax.jit, static_argnums=(0, 4))
def _run(graphdef, state, inputs, text, keep, proposals=None):
    model = nnx.merge(graphdef, state)
    layout = view_layout(model.config)
    views = image_views(inputs, model.config, layout)
    has_masks = model.config.masks is not None and proposals is None
    sam_input = sam_views(inputs.sam_image, inputs.sam_size) if has_masks else None
    return model(
        views,
        sam_input,
        text,
        layout=layout,
        pooling_size=1,
        proposals=proposals,
        keep_classes=keep,
    )


@partial(jax.jit, static_argnums=0)
def _low(graphdef, state, inputs):
    model = nnx.merge(graphdef, state)
    return model.encode_views(image_views(inputs, model.config, view_layout(model.config))).low


def _setup(config, rng):
    pictures = [rng.integers(0, 256, (50, 70, 3), np.uint8) for _ in range(2)]
    inputs = stack_inputs([segmenter_input(picture, config) for picture in pictures])
    features = rng.normal(size=(NUM_CLASSES, 1, config.clip.embed_dim)).astype("f")
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    text = ClassTexts(jnp.asarray(features), jnp.arange(NUM_CLASSES) != 2)  # 2 only pads
    return *nnx.split(_randomized(config)), inputs, text


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CATSEG, marks=pytest.mark.slow, id="catseg"),
        pytest.param(ONE_VIEW, id="sammi"),
    ],
)
def test_kept_classes_are_decoded_as_if_asked_for_alone(config, rng):
    graphdef, state, inputs, text = _setup(config, rng)
    reduced = _run(graphdef, state, inputs, text, KEPT)
    features = _low(graphdef, state, inputs)
    for image in range(2):
        cosines = cost_map(features[image], text.features)  # [v, h, w, t, p]
        best = np.where(text.mask, cosines.max(axis=(0, 1, 2, 4)), -np.inf)
        kept = np.sort(np.argsort(-best)[:KEPT])
        decoded = np.asarray(reduced.logits[image] > ABSENT_LOGIT).any(axis=(2, 3))
        np.testing.assert_array_equal(
            decoded, np.broadcast_to(np.isin(range(7), kept), decoded.shape)
        )
        one = jax.tree.map(lambda x, i=image: x[i : i + 1], (inputs, reduced.proposals))
        alone = ClassTexts(text.features[kept], jnp.ones(KEPT, bool))
        alone = _run(graphdef, state, one[0], alone, None, one[1])
        assert_parity(reduced.logits[image][:, kept], alone.logits[0], 1e-5, f"image {image}")
        if config.masks is not None:
            means = reduced.regions.means[image][:, kept]
            assert_parity(means, alone.regions.means[0], 1e-5, f"masks of image {image}")


@pytest.mark.parametrize("keep", [NUM_CLASSES, NUM_CLASSES + 5])
def test_keeping_all_classes_changes_nothing(keep, rng):
    graphdef, state, inputs, text = _setup(CATSEG, rng)
    whole, kept = (_run(graphdef, state, inputs, text, each) for each in (None, keep))
    np.testing.assert_array_equal(whole.logits, kept.logits)


def test_maps_of_other_classes_are_not_made(rng):
    """Of nine classes three can win: two chunks of two, and the one that is made ahead."""
    maps = jnp.asarray(rng.normal(size=(9, 4, 5)), "f")
    mask = np.isin(range(9), (1, 4, 8))
    made = []

    def canvas_maps(classes):
        jax.debug.callback(lambda found: made.append(found.tolist()), classes, ordered=True)
        return maps[classes]

    score, index = best_class(canvas_maps, lambda found: found, jnp.asarray(mask), 2, (4, 5))
    jax.effects_barrier()
    assert len(made) == 3
    assert {1, 4, 8} <= {one for chunk in made for one in chunk}
    masked = np.where(mask[:, None, None], maps, -np.inf)
    np.testing.assert_array_equal(index, masked.argmax(axis=0))
    np.testing.assert_array_equal(score, masked.max(axis=0))


def test_a_model_keeps_classes():
    """The bundled model: at most so many classes in an image, and all scores can be asked for."""
    picture = open_dataset("os48/val_seen", 1).source[0]["image"]
    names = [*SHOWN, "green bricks", "yellow gravel", "red waves", "green thing"]
    full, reduced = (sammi_jax.load(keep_classes=keep) for keep in (None, 2))
    assert len(np.unique(full.segment(picture, names).labels)) > 2  # so that there is a choice
    found = reduced.segment(picture, names)
    assert len(np.unique(found.labels)) <= 2
    assert found.scores.shape == (len(names), *picture.shape[:2])
    dropped = found.scores.max(axis=(1, 2)) < 1e-6
    assert dropped.sum() == len(names) - 2
    assert not dropped[np.unique(found.labels)].any()


@pytest.mark.parametrize("keep", [0, -3])
def test_numbers_that_are_refused(keep, tmp_path, capsys):
    with pytest.raises(SammiError, match=f"keep_classes {keep}: give at least 1"):
        sammi_jax.load(keep_classes=keep)
    with pytest.raises(SammiError, match=f"keep_classes={keep}: give at least 1"):
        EvalConfig(keep_classes=keep)
    image, out = tmp_path / "a.png", tmp_path / "out"
    command = ["segment", str(image), "--classes", "a, b", "--out", str(out)]
    assert main([*command, "--keep-classes", str(keep)]) == 1
    assert f"--keep-classes {keep}: give at least 1" in capsys.readouterr().err
    assert not out.exists()


def test_a_clip_alone_keeps_no_classes(tmp_path):
    clip = read_source("openshapes_clip", ["clip"])
    folder = tmp_path / "clip"
    write_model(folder, "clip", clip.config, clip.params, source={}, licence="")
    with pytest.raises(SammiError, match="is a CLIP, which scores all classes"):
        load_predictor(folder, sammi_jax.load().config, keep_classes=3)


def test_long_lists_of_a_model_that_cuts_them(rng):
    """More classes than `pad_length`: each view has its own choice, and the read-out skips."""
    config = dataclasses.replace(
        CATSEG, aggregator=dataclasses.replace(CATSEG.aggregator, pad_length=4)
    )
    graphdef, state, inputs, text = _setup(config, rng)
    output = _run(graphdef, state, inputs, text, 5)  # above the model's own limit: no choice
    decoded = np.asarray(output.logits > ABSENT_LOGIT).any(axis=(3, 4)).sum(axis=2)
    assert (decoded == 4).all()
