"""JAX's compilation cache in a bucket, against emulators."""

import warnings
from contextlib import closing

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sammi_jax.cli.main import main
from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path, list_objects, remove
from sammi_jax.parallel.compilation_cache import use_compilation_cache
from sammi_jax.training.goodput import Startup
from tests.emulators import BUCKET, FORBIDDEN, Line, refusing, use

CACHE = f"gs://{BUCKET}/compiled"
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_enable_xla_caches",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """JAX as a new process finds it, with a cache in a bucket."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", CACHE)
    jax.config.update("jax_compilation_cache_max_size", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def store(stores, monkeypatch):
    """The port of Google's store, whose cache is empty."""
    use(monkeypatch, stores["gs"])
    remove(as_path(CACHE))
    return stores["gs"]


def cached_programs(factor):
    """Compile a program of its own anew; how many came from the cache."""
    jax.clear_caches()
    with closing(Startup()) as startup:
        jax.jit(lambda x: jnp.tanh(x) * factor)(jnp.ones(3)).block_until_ready()
    return startup.cached


@pytest.mark.usefixtures("store")
def test_programs_come_from_the_bucket():
    use_compilation_cache()
    assert cached_programs(2.5) == 0
    found = list_objects(as_path(CACHE))
    assert found
    assert all(name.endswith("-cache") for name in found)
    compilation_cache.reset_cache()
    assert cached_programs(2.5) == len(found)
    assert list_objects(as_path(CACHE)) == found


@pytest.mark.filterwarnings("default:the compilation cache")
@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_refuses_is_not_used(status, monkeypatch, capsys):
    with refusing(status, b'{"error": {"message": "no"}}') as port:
        use(monkeypatch, port)
        assert main(["datasets", "list"]) == 0
        assert cached_programs(3.5) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cache" in line]
    assert line.startswith("sammi: warning: the compilation cache is not used")
    assert f"{CACHE}: " in line


@pytest.mark.usefixtures("store")
def test_a_bucket_that_does_not_exist_is_not_used(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://nobody/compiled")
    with pytest.warns(UserWarning, match=r"cache is not used.* no such bucket gs://nobody"):
        use_compilation_cache()
    assert cached_programs(4.5) == 0


def test_without_the_right_to_write_the_cache_is_read(store, monkeypatch):
    use_compilation_cache()
    cached_programs(5.5)
    found = list_objects(as_path(CACHE))
    line = Line(store, until=b"POST /upload", answer=FORBIDDEN)
    use(monkeypatch, line.port)
    compilation_cache.reset_cache()
    with pytest.warns(UserWarning, match=r"nothing is added .* access to the bucket is denied"):
        use_compilation_cache()
    assert cached_programs(5.5) > 0
    with warnings.catch_warnings(action="error"):
        cached_programs(6.5)
    line.close()
    use(monkeypatch, store)
    assert list_objects(as_path(CACHE)) == found


@pytest.mark.parametrize("text", ["az://b/compiled", "gs://"])
def test_urls_that_cannot_be_used(text, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", text)
    with pytest.raises(SammiError, match=f"^{text}"):
        use_compilation_cache()


def test_a_maximal_size_is_an_error():
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    with pytest.raises(SammiError, match="JAX_COMPILATION_CACHE_MAX_SIZE cannot be used in a buck"):
        use_compilation_cache()
