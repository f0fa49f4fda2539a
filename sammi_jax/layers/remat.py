"""Rematerialization: the backward pass recomputes activations instead of storing them."""

from collections.abc import Callable
from typing import Any

import jax

from sammi_jax.config.model import Remat

_SAVED: dict[Remat, Callable[..., Any] | None] = {
    "elementwise": jax.checkpoint_policies.dots_saveable,
    "full": None,
}


def rematerialized(
    f: Callable[..., Any], remat: Remat, *, prevent_cse: bool = True
) -> Callable[..., Any]:
    """``f`` with rematerialization.

    Args:
        f: a module or function of arrays.
        remat: which activations are recomputed (`sammi_jax.config.model.Remat`); ``none`` returns
            ``f`` itself.
        prevent_cse: see `jax.checkpoint`; False inside `jax.lax.scan`, which does not need it.
    """
    if remat == "none":
        return f
    return jax.checkpoint(f, policy=_SAVED[remat], prevent_cse=prevent_cse)
