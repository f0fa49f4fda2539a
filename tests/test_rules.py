import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.model import ClipConfig
from sammi_jax.convert.rules import (
    CONV,
    CONV_TRANSPOSE,
    LINEAR,
    PATCH_EMBED,
    Rule,
    apply_rules,
    invert_rules,
    layer_rules,
)
from sammi_jax.errors import SammiError
from sammi_jax.layers import Stack, linear
from sammi_jax.layers.init import Keys
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.params import abstract_params, build, flat_params

BLOCK = [
    ("w", "a/kernel", LINEAR, (0, 2)),
    ("w", "b/kernel", LINEAR, (1, 2)),
]
RULES = [*layer_rules("net.{}.", "stack/", BLOCK, 3), Rule("head", "head")]
EXPECTED = {
    "stack/a/kernel": jax.ShapeDtypeStruct((3, 4, 5), np.float32),
    "stack/b/kernel": jax.ShapeDtypeStruct((3, 4, 5), np.float32),
    "head": jax.ShapeDtypeStruct((2,), np.float32),
}


@pytest.fixture
def source(rng):
    tensors = {f"net.{i}.w": rng.normal(size=(10, 4)).astype("f") for i in range(3)}
    return {**tensors, "head": rng.normal(size=2).astype("f")}


def test_split_stack_and_inverse(source):
    params = apply_rules(source, RULES, EXPECTED)
    np.testing.assert_array_equal(params["stack/b/kernel"][1], source["net.1.w"][5:].T)
    back = invert_rules(params, RULES)
    assert back.keys() == source.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("transform", [LINEAR, CONV, PATCH_EMBED, CONV_TRANSPOSE])
def test_transform_inverts(transform, rng):
    array = rng.normal(size=(4, 5) if transform is LINEAR else (4, 3, 2, 2))
    np.testing.assert_array_equal(transform.inverse(transform.forward(array)), array)


def test_errors_are_collected_and_named(source):
    source["net.0.w"] = source["net.0.w"][:, :3]
    source["extra"] = source.pop("head")
    with pytest.raises(SammiError) as error:
        apply_rules(source, RULES, EXPECTED)
    text = str(error.value)
    assert "missing (1): head" in text
    assert "unknown (1): extra" in text
    assert "wrong shape (2): net.0.w" in text
    assert "\n" not in text


@pytest.mark.parametrize("shape", [(9, 4), ()], ids=["no two halves", "a scalar"])
def test_what_cannot_be_cut_into_its_parts(source, shape):
    source["net.0.w"] = np.ones(shape, np.float32)
    with pytest.raises(SammiError, match=r"wrong shape \(2\): net\.0\.w"):
        apply_rules(source, RULES, EXPECTED)


def test_more_layers_than_the_model_has(source):
    source["net.3.w"] = source["net.0.w"]
    rules = [*layer_rules("net.{}.", "stack/", BLOCK, 4), RULES[-1]]
    with pytest.raises(SammiError, match="stack/a/kernel"):
        apply_rules(source, rules, EXPECTED)


def test_unfilled_slot_and_double_use(source):
    with pytest.raises(SammiError, match=r"not filled \(1\): stack/a/kernel"):
        apply_rules(source, RULES[1:], EXPECTED, {"net.0.w": "test"})
    with pytest.raises(SammiError, match=r"filled twice \(1\): head"):
        apply_rules(source, [*RULES, Rule("head", "head")], EXPECTED)


def test_ignored_key_is_accepted(source):
    source["buffer"] = np.zeros(3)
    assert apply_rules(source, RULES, EXPECTED, {"buffer": "recomputed"}).keys() == EXPECTED.keys()


class _Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = Stack(lambda r: linear(3, 3, rngs=r), 2, rngs=rngs)
        self.parts = nnx.List([linear(3, 2, rngs=rngs)])


def test_build_round_trip_and_strictness():
    def make():
        return _Net(nnx.Rngs(0))

    params = flat_params(make())
    assert {k: v.shape for k, v in abstract_params(make).items()} == {
        k: v.shape for k, v in params.items()
    }
    for path, value in flat_params(build(make, params)).items():
        np.testing.assert_array_equal(value, params[path])
    broken = {**params, "nope": params["parts/0/bias"]}
    del broken["parts/0/kernel"]
    with pytest.raises(SammiError, match="missing parts/0/kernel; unknown nope"):
        build(make, broken)


def test_a_model_is_traced_once():
    """Also where the first to ask is itself being traced: nothing of that trace is kept."""
    calls = []

    def make():
        calls.append(1)
        return _Net(nnx.Rngs(0))

    params = flat_params(make())
    traced = jax.jit(lambda params: flat_params(build(make, params)))(params)
    cast = flat_params(build(make, params, "bfloat16"))
    assert len(calls) == 2  # the module above, and the trace
    for path, value in params.items():
        np.testing.assert_array_equal(traced[path], value)
        assert cast[path].dtype == jnp.bfloat16
    one, other = build(make, params), build(make, params)
    one.parts[0].bias[...] = jnp.ones(2)
    np.testing.assert_array_equal(other.parts[0].bias[...], params["parts/0/bias"])


def test_equal_configurations_have_one_constructor():
    small, other = ClipConfig(embed_dim=16), ClipConfig(embed_dim=32)
    assert model_maker(small) is model_maker(ClipConfig(embed_dim=16))
    assert model_maker(small) is not model_maker(other)
    assert model_maker(small, 1) is not model_maker(small)


def test_keys_are_those_of_flax():
    """What makes tracing fast changes no initial value."""
    ours, flax = Keys(3), nnx.Rngs(3)
    for _ in range(3):
        np.testing.assert_array_equal(
            jax.random.key_data(ours.params()), jax.random.key_data(flax.params())
        )
