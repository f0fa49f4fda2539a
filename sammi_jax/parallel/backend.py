"""JAX's failure to start a backend as one line with the remedy.

JAX looks for devices when they are first needed, which may be anywhere in a command. What it raises
there differs: a `RuntimeError` that tells the cause, or, for ``JAX_PLATFORMS=cuda`` without the
plugin, a bare `AssertionError`.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sammi_jax.errors import SammiError

TPU_COMMAND = "pip install 'sammi_jax[tpu]'"
CUDA_COMMAND = 'pip install "jax[cuda13]"'
_REMEDIES = {
    "cuda": f"{CUDA_COMMAND} (and NVIDIA's driver)",
    "gpu": f"{CUDA_COMMAND} (and NVIDIA's driver)",
    "rocm": "install JAX's ROCm plugin (and AMD's driver)",
    "tpu": f"{TPU_COMMAND} (on a machine with TPUs)",
}
# What JAX puts around the cause.
_BEFORE = re.compile(r"^Unable to initialize backend '\w+': ")
_AFTER = re.compile(r"\.?\s*\((?:set JAX_PLATFORMS|you may need to uninstall)[^)]*\)\s*$")


@contextmanager
def backend_errors() -> Iterator[None]:
    """Turn an error inside the block into a `SammiError` if JAX has no devices because of it."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        problem = backend_problem() if "jax" in sys.modules else None
        if problem is None:
            raise
        raise SammiError(problem) from error


def backend_problem() -> str | None:
    """Why JAX cannot start, as one line with the remedy; None: it can, and has devices."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        return _message(os.environ.get("JAX_PLATFORMS", ""), str(error))
    return None


def _message(asked: str, cause: str) -> str:
    """The line for the value of ``JAX_PLATFORMS`` and the message of JAX's error."""
    cause = _BEFORE.sub("", _AFTER.sub("", cause)).partition("\n")[0] or "it has no plugin for it"
    names = [name.strip() for name in asked.split(",") if name.strip() not in ("", "cpu")]
    if not names:
        return f"JAX cannot start its devices: {cause}; JAX_PLATFORMS=cpu does without them"
    if unknown := [name for name in names if name not in _REMEDIES]:
        remedy = f"in the place of {unknown[0]} name one of cpu, {', '.join(_REMEDIES)}"
    else:
        remedy = _REMEDIES[names[0]]
    return (
        f"JAX_PLATFORMS={asked}: JAX cannot use it here: {cause}; {remedy}; or unset JAX_PLATFORMS "
        "to use what this machine has"
    )
