import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Eight devices for the sharding tests. Most of the time of a small test is spent in the compiler,
# so its optimization is off unless XLA_FLAGS says otherwise: the last of two equal flags counts.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)
# Compiled programs are kept for the next run, as pytest keeps what it knows, and for the processes
# that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))

import jax
import numpy as np
import pytest

from sammi_jax.text.tokenizer import BPE_FILE

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


@pytest.fixture(scope="session")
def bpe_file() -> Path:
    """OpenAI's vocabulary, which only the wheel of open_clip_torch brings along."""
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed (pip install --no-deps open_clip_torch)")
    (path,) = [file.locate() for file in files if file.name == BPE_FILE]
    return Path(str(path))
