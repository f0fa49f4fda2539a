"""The pure functions of SAM-MI's heads, for use without its modules."""

from sammi_jax.models.smagg import aggregate_masks, connected_components
from sammi_jax.models.tspp import sample_points
from sammi_jax.ops.masks import mask_pool

__all__ = ["aggregate_masks", "connected_components", "mask_pool", "sample_points"]
