"""JAX's compilation cache in a bucket: used where it can be, and never a reason to end a run.

JAX itself reads and writes the objects, one a program, by `etils.epath`; in a job process 0 writes.
Where the bucket cannot be used, JAX would try again for each program, for a minute each.
"""

import os
import warnings

from sammi_jax.errors import SammiError
from sammi_jax.object_store import AnyPath, as_path, exists, put, remove

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_PROBE = ".sammi-writable"


def use_compilation_cache() -> None:
    """Set JAX up for a cache in a bucket, where ``JAX_COMPILATION_CACHE_DIR`` names one.

    A bucket that cannot be read is not used, and to one that cannot be written to nothing is added;
    both with a warning. To be called once the job is joined, before anything is compiled.

    Raises:
        SammiError: the variable is a URL of another kind, the bucket's client is not installed, or
            the cache has a maximal size.
    """
    text = os.environ.get(_VARIABLE, "")
    if "://" not in text:
        return
    folder = as_path(text)
    import jax

    if jax.config.values["jax_compilation_cache_max_size"] != -1:
        raise SammiError(
            f"{_VARIABLE}={text}: JAX_COMPILATION_CACHE_MAX_SIZE cannot be used in a bucket, where "
            "JAX has no lock; unset it, and let a lifecycle rule of the bucket delete old objects"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # XLA has no client for buckets: its own caches (of a GPU's autotuning) cannot be there.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    try:
        is_empty = not exists(folder)
    except SammiError as error:
        _turn_off(error)
        return
    problem = _write_problem(folder) if jax.process_index() == 0 else None
    if problem is None:
        return
    if is_empty:  # or its bucket does not exist, which JAX would try to create
        _turn_off(problem)
        return
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    warnings.warn(f"nothing is added to the compilation cache: {problem}", stacklevel=2)


def _write_problem(folder: AnyPath) -> SammiError | None:
    try:
        put(folder / _PROBE, b"")
        remove(folder / _PROBE)
    except SammiError as error:
        return error
    return None


def _turn_off(problem: SammiError) -> None:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    warnings.warn(
        f"the compilation cache is not used, and all programs are compiled: {problem}",
        stacklevel=3,
    )
