"""Types and array shapes are checked in tests, and cost a user's installation nothing."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from sammi_jax.ops.boundary import region_boundary
from sammi_jax.ops.class_sampling import relabel

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["jaxtyping"] = sys.modules["beartype"] = None  # importing them raises ImportError
import sammi_jax
from sammi_jax.typing import Array, Bool, Float
for module in pkgutil.walk_packages(sammi_jax.__path__, "sammi_jax."):
    if module.name != "sammi_jax.__main__":
        importlib.import_module(module.name)
assert Float[Array, "b h w"] is Array
"""


def test_everything_imports_without_jaxtyping_and_beartype():
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_wrong_shapes_and_types_are_errors_in_tests():
    labels, distance = jnp.zeros((4, 5), jnp.int32), jnp.ones((), jnp.int32)
    assert region_boundary(labels, distance).shape == (4, 5)
    for wrong in (labels[None], labels.astype(float), np.asarray(labels)):
        with pytest.raises(jaxtyping.TypeCheckError):
            region_boundary(wrong, distance)
    with pytest.raises(jaxtyping.TypeCheckError):
        relabel(labels[None], jnp.arange(3), "3", 255)


def test_silent_rank_promotion_is_an_error_in_tests():
    with pytest.raises(ValueError, match="jax_numpy_rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
