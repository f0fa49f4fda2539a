"""CLIP's blocks with weights of their own give what the stack gives."""

import jax
import jax.numpy as jnp
from flax import nnx

from sammi_jax.inference.unrolled import unrolled_on_cpu
from sammi_jax.layers import Stack, Unrolled
from sammi_jax.models.clip import Clip
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.params import build
from tests.parity import assert_parity
from tests.test_folder import CLIP, random_params


def _clip(params) -> Clip:
    module = build(model_maker(CLIP), params)
    assert isinstance(module, Clip)
    return module


def test_towers_are_equal(rng):
    params = {path: 0.3 * value for path, value in random_params(CLIP).items()}
    image = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), "f")
    ids = jnp.asarray(rng.integers(1, 19, (3, 6)), jnp.int32)

    def run(module):
        graphdef, state = nnx.split(module)

        def outputs(state):
            clip = nnx.merge(graphdef, state)
            return clip.encode_image(image), clip.encode_dense(image, (0, 1)), clip.encode_text(ids)

        return jax.jit(outputs)(state)

    clip = unrolled_on_cpu(_clip(params))
    assert isinstance(clip.vision.transformer, Unrolled)
    assert isinstance(clip.text.transformer, Unrolled)
    reference, ours = run(_clip(params)), run(clip)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert_parity(a, b, 1e-6, "unrolled")


def test_what_is_traced_stays_stacked():
    kinds = []

    def trace(params):
        kinds.append(type(unrolled_on_cpu(_clip(params)).vision.transformer))
        return jnp.zeros(())

    jax.eval_shape(trace, random_params(CLIP))
    assert kinds == [Stack]
