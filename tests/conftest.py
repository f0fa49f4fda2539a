import gc
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.xla_flags import fast_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Eight devices for the sharding tests; where XLA_FLAGS is set, the last of two equal flags counts.
os.environ["XLA_FLAGS"] = f"{fast_flags(devices=8)} {os.environ.get('XLA_FLAGS', '')}"
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

from sammi_jax import object_store
from tests.skips import (  # noqa: F401 (hooks)
    PhotographsMissingError,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

# JAX makes objects by the hundred thousand when it traces; Python's default looks for cycles after
# every 700 of them.
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes that only happen to fit hide errors

ROOT = Path(__file__).resolve().parent.parent
PHOTOGRAPHS = ROOT.parent / "shared" / "images"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Public images with their label files, which are not ours to give on."""
    if not PHOTOGRAPHS.is_dir():
        raise PhotographsMissingError(f"no photographs at {PHOTOGRAPHS}")
    return PHOTOGRAPHS


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Reference outputs; their README says how they were made."""
    return ROOT / "tests" / "goldens"


@pytest.fixture(scope="session")
def catseg_pth(goldens, tmp_path_factory) -> Path:
    """The tiny CAT-Seg as the reference's trainer saves it, beside its description."""
    import torch
    from safetensors.torch import load_file

    path = tmp_path_factory.mktemp("released") / "catseg_tiny.pth"
    trainer = {"iteration": 79999, "hooks": {}, "_trainer": {"optimizer": {"state": {}}}}
    state = load_file(goldens / "catseg_tiny.safetensors")
    torch.save({"model": state, "trainer": trainer, "iteration": 79999}, path)
    shutil.copy(goldens / "catseg_tiny.json", path.parent)
    return path


@pytest.fixture(scope="session")
def bpe_file() -> Path:
    """OpenAI's vocabulary, which only the wheel of open_clip_torch brings along."""
    try:
        files = importlib.metadata.files("open_clip_torch") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("open_clip_torch is not installed: run `make env`")
    (path,) = [file.locate() for file in files if file.name == "bpe_simple_vocab_16e6.txt.gz"]
    return Path(str(path))


@pytest.fixture(scope="session")
def stores() -> Iterator[dict[str, int]]:
    """The ports of emulators of Google's and Amazon's store; each holds `emulators.BUCKET`."""
    from tests.emulators import BUCKET, amazon, google, use

    with google() as gs, amazon() as s3:
        with pytest.MonkeyPatch.context() as patch:
            use(patch, s3)
            object_store._filesystem("s3").mkdir(BUCKET)
        yield {"gs": gs, "s3": s3}


@pytest.fixture(params=["gs", "s3"])
def bucket(request, stores, monkeypatch, tmp_path) -> object_store.AnyPath:
    """An empty folder of a bucket, in either store."""
    from tests.emulators import BUCKET, use

    use(monkeypatch, stores[request.param])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    top = object_store.as_path(f"{request.param}://{BUCKET}/top")
    object_store.remove(top)
    return top


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not look at it again."""
    gc.freeze()
