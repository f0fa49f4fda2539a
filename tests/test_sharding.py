"""Where parameters lie, and constraints inside the models: same results, less work a device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sammi_jax.config.experiment import MeshConfig
from sammi_jax.config.model import CLIP_SIZES
from sammi_jax.models.clip import Clip
from sammi_jax.models.sammi import text_embeddings
from sammi_jax.ops.sharding import spread, whole
from sammi_jax.parallel.mesh import make_mesh
from tests.sharding_table import CONFIGS, sharding_table


def test_constraints_do_nothing_without_a_mesh():
    x = jnp.ones(3)
    assert spread(x) is x
    assert whole(x) is x


def test_devices_share_the_texts(rng):
    """Eleven texts on eight devices: at most two for each, and the same embeddings."""
    model = Clip(CLIP_SIZES["openshapes"], rngs=nnx.Rngs(0))
    token_ids = jnp.asarray(rng.integers(1, 30, (11, 1, 12)), jnp.int32)
    graphdef, state = nnx.split(model)

    def embed(state, token_ids):
        return text_embeddings(nnx.merge(graphdef, state), token_ids)

    alone = jax.jit(embed).lower(state, token_ids).compile()
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=4))):
        shared = jax.jit(embed).lower(state, token_ids).compile()
        found = shared(state, token_ids)
    assert found.sharding.is_fully_replicated
    np.testing.assert_allclose(found, alone(state, token_ids), atol=1e-6)
    assert shared.cost_analysis()["flops"] < 0.25 * alone.cost_analysis()["flops"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_parameters_of_the_real_configurations_are_split_as_recorded(goldens, name):
    """Where a change means to split them otherwise: ``python -m tests.sharding_table``."""
    recorded = (goldens / f"sharding_{name}.txt").read_text()
    assert sharding_table(name).splitlines() == recorded.splitlines()
