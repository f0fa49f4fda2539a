"""Open-vocabulary semantic segmentation in JAX: SAM-MI, CAT-Seg, CLIP and SAM."""

import importlib
from typing import TYPE_CHECKING, Any

from sammi_jax.errors import SammiError

if TYPE_CHECKING:
    from sammi_jax import functional
    from sammi_jax.inference.result import Segmentation
    from sammi_jax.inference.segmenter import Segmenter, load
    from sammi_jax.inference.towers import ClipModel, SamModel, load_clip, load_sam

__version__ = "0.1.0"

__all__ = [
    "ClipModel",
    "SamModel",
    "SammiError",
    "Segmentation",
    "Segmenter",
    "functional",
    "load",
    "load_clip",
    "load_sam",
]

_HOMES = {
    "Segmentation": "sammi_jax.inference.result",
    **dict.fromkeys(("Segmenter", "load"), "sammi_jax.inference.segmenter"),
    **dict.fromkeys(
        ("ClipModel", "SamModel", "load_clip", "load_sam"), "sammi_jax.inference.towers"
    ),
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `sammi --help` must not wait for jax.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "functional":
        return importlib.import_module("sammi_jax.functional")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
