"""CLIP's blocks with weights of their own give what the stack gives."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.inference.unrolled import unrolled_on_cpu
from sammi_jax.layers import Stack, Unrolled
from sammi_jax.models.clip import Clip
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import read_model
from sammi_jax.weights.params import build
from tests.parity import assert_parity


def _clip():
    folder = read_model("openshapes_clip")
    return build(model_maker(folder.config), folder.params)


def test_towers_are_equal(rng):
    image = jnp.asarray(rng.normal(size=(2, 48, 48, 3)), "f")
    ids = jnp.asarray(rng.integers(1, 29, (3, 8)), jnp.int32)

    def run(module):
        graphdef, state = nnx.split(module)

        def outputs(state):
            clip = nnx.merge(graphdef, state)
            return clip.encode_image(image), clip.encode_dense(image, (0, 1)), clip.encode_text(ids)

        return jax.jit(outputs)(state)

    clip = unrolled_on_cpu(_clip())
    assert isinstance(clip, Clip)
    assert isinstance(clip.vision.transformer, Unrolled)
    assert isinstance(clip.text.transformer, Unrolled)
    reference, ours = run(_clip()), run(clip)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert_parity(a, b, 1e-6, "unrolled")


def test_what_is_traced_stays_stacked():
    folder = read_model("openshapes_clip")
    kinds = []

    def trace(params):
        clip = unrolled_on_cpu(build(model_maker(folder.config), params))
        assert isinstance(clip, Clip)
        kinds.append(type(clip.vision.transformer))
        return jnp.zeros(())

    jax.eval_shape(trace, {path: np.asarray(value) for path, value in folder.params.items()})
    assert kinds == [Stack]
