"""Cost aggregation and up-sampling decoder: cost map and guidance in, logits of each class out.

Ported from cvlab-kaist/CAT-Seg@6d3a188 cat_seg/modeling/transformer/model.py (``Aggregator``);
catseg.md part c. Every step but the class attention treats each class's map on its own.
Deviations: guidance that the reference repeats for every class is multiplied once an image (equal
up to rounding); classes may be absent (``class_mask``), which gives the present ones exactly what
the reference gives for them alone; ``cost_skip`` [ours] adds the scaled raw cost to the logits.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config import AggregatorConfig
from sammi_jax.layers import Conv, TransposedConv, group_norm, linear
from sammi_jax.layers.class_attention import ClassAggregation
from sammi_jax.layers.swin import SpatialAggregation
from sammi_jax.ops.resize import resize
from sammi_jax.typing import Array, Bool, Float, Int

ABSENT_LOGIT = -100.0
GROUP_SIZE = 16  # channels in a group of the decoder's norms
# Cosines of a few tenths then start as logits around -3: about the prior of one class in many.
SKIP_SCALE, SKIP_BIAS = 10.0, -5.0


class AggregatorLayer(nnx.Module):
    """One layer: aggregation over space (``spatial``), then over classes (``classes``)."""

    def __init__(self, config: AggregatorConfig, *, rngs: nnx.Rngs):
        dim, heads = config.hidden_dim, config.num_heads
        self.spatial = SpatialAggregation(
            dim, config.appearance_dim, heads, config.window_size, rngs=rngs
        )
        self.classes = ClassAggregation(dim, config.text_dim, heads, config.attention, rngs=rngs)


class DecoderBlock(nnx.Module):
    """Doubles the side: transposed convolution, guidance appended, two convolutions with norms."""

    def __init__(self, in_dim: int, guidance_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        groups = out_dim // GROUP_SIZE
        self.up = TransposedConv(in_dim, in_dim - guidance_dim, 2, rngs=rngs)
        self.conv1 = Conv(in_dim, out_dim, 3, use_bias=False, rngs=rngs)
        self.norm1 = group_norm(out_dim, groups, rngs=rngs)
        self.conv2 = Conv(out_dim, out_dim, 3, use_bias=False, rngs=rngs)
        self.norm2 = group_norm(out_dim, groups, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], guidance: Float[Array, "b h2 w2 g"]
    ) -> Float[Array, "b t h2 w2 d"]:
        """Decode each class's map; ``guidance`` is shared by the classes of an image."""
        batch, classes = x.shape[:2]
        x = self.up(rearrange(x, "b t h w c -> (b t) h w c"))
        x = self._guided_conv(x, guidance, classes)
        x = jax.nn.relu(self.norm1(x))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        return rearrange(x, "(b t) h w c -> b t h w c", b=batch)
