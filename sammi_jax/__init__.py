"""Open-vocabulary semantic segmentation in JAX: SAM-MI, CAT-Seg, CLIP and SAM."""

import importlib
from typing import TYPE_CHECKING, Any

from sammi_jax.errors import SammiError

if TYPE_CHECKING:
    from sammi_jax import functional
    from sammi_jax.pipeline import ClipModel, SamModel, Segmenter, load, load_clip, load_sam
    from sammi_jax.segmentation import Segmentation

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
    "Segmentation": "sammi_jax.segmentation",
    **dict.fromkeys(
        ("ClipModel", "SamModel", "Segmenter", "load", "load_clip", "load_sam"),
        "sammi_jax.pipeline",
    ),
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `sammi --help` must not wait for jax.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "functional":
        return importlib.import_module("sammi_jax.functional")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
