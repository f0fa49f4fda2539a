import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Eight devices for the sharding tests. Most of the time of a small test is spent in the compiler:
# its optimisation is off unless XLA_FLAGS says otherwise (`make slow` does).
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_GIVEN, *(f"{flag}={value}" for flag, value in _FLAGS.items() if flag not in _GIVEN)]
)

import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def shared() -> Path:
    """The workplace's reference data; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture
def goldens(shared) -> Path:
    return shared / "goldens"
