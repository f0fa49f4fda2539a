"""The training loss against the reference's (`tests/goldens`) and its rules."""

import json

import jax.numpy as jnp
import numpy as np

from sammi_jax.training.losses import segmentation_loss
from tests.parity import assert_parity, errors


def test_loss_matches_the_reference(goldens):
    data = np.load(goldens / "catseg_tiny_train.npz")
    facts = json.loads((goldens / "catseg_tiny.json").read_text())
    logits, labels = jnp.asarray(data["fwd/logits"]), jnp.asarray(data["target"], int)
    mask = jnp.ones(5, bool)
    ours = segmentation_loss(logits, labels, mask)
    assert_parity(ours, facts["loss_reference"], 1e-6, "loss")
    dropped = segmentation_loss(logits, labels, mask, ignored_as_negative=False)
    reference = facts["loss_if_ignored_pixels_were_dropped"]
    assert_parity(dropped, reference, 1e-6, "loss, ignored pixels dropped")
    assert errors(dropped, facts["loss_reference"])[0] > 1e-3
    padded = jnp.concatenate([logits, jnp.full((2, 3, 48, 48), -100.0)], axis=1)
    for value in (7.0, -100.0):
        padded = padded.at[:, 5:].set(value)
        assert_parity(segmentation_loss(padded, labels, jnp.arange(8) < 5), ours, 1e-6, "padded")


def test_loss_without_any_pixel_is_zero(rng):
    logits = jnp.asarray(rng.normal(size=(1, 3, 4, 4)))
    nothing = jnp.full((1, 8, 8), 255)
    mask = jnp.ones(3, bool)
    assert segmentation_loss(logits, nothing, mask, ignored_as_negative=False) == 0.0
    assert segmentation_loss(logits, nothing, mask) > 0.0
