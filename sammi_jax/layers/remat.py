"""Rematerialization: inner values that the backward pass makes again instead of keeping them."""

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
    """``f`` under a policy of `config.Remat`.

    Args:
        f: a module or function of arrays.
        remat: ``none`` gives ``f`` itself.
        prevent_cse: False inside `jax.lax.scan`, where nothing need be prevented.
    """
    if remat == "none":
        return f
    return jax.checkpoint(f, policy=_SAVED[remat], prevent_cse=prevent_cse)
