"""SAM's prompt encoder: points, boxes and masks to embeddings.

Original: facebookresearch/segment-anything, segment_anything/modeling/prompt_encoder.py.

Deviations: channels last; any leading axes; a box is embedded as two points with the labels 2 and
3, which is the same thing; products with the random Fourier matrix are written out, so that an
accelerator's default precision cannot blur the positions.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.layers import ACTIVATIONS, Buffer, PatchEmbed, layer_norm, linear
from sammi_jax.layers.init import normal
from sammi_jax.typing import Array, Float, Int

PADDING = -1  # label of a point that is none
BOX_LABELS = (2, 3)  # labels of a box's top-left and bottom-right corner


class FourierEncoding(nnx.Module):
    """Positions to sines and cosines of random frequencies (Tancik et al. 2020)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.matrix = Buffer(normal(rngs.params(), (2, dim // 2)))

    def __call__(self, position: Float[Array, "*b 2"]) -> Float[Array, "*b c"]:
        """Encode positions (x, y), the image being the unit square."""
        x, y = jnp.split(2 * position - 1, 2, axis=-1)
        shape = (*position.shape[:-1], self.matrix[...].shape[1])
        x_frequency, y_frequency = (jnp.broadcast_to(self.matrix[i], shape) for i in (0, 1))
        angle = 2 * np.pi * (x * x_frequency + y * y_frequency)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class MaskDownscaling(nnx.Module):
    """A mask prompt, four times the image embedding's side, to the embedding's grid."""

    def __init__(self, hidden: int, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = PatchEmbed(2, hidden // 4, channels=1, rngs=rngs)
        self.norm1 = layer_norm(hidden // 4, eps=1e-6, rngs=rngs)
        self.conv2 = PatchEmbed(2, hidden, channels=hidden // 4, rngs=rngs)
        self.norm2 = layer_norm(hidden, eps=1e-6, rngs=rngs)
        self.conv3 = linear(hidden, dim, rngs=rngs)

    def __call__(self, mask: Float[Array, "b h w"]) -> Float[Array, "b h2 w2 c"]:
        """Embed mask logits."""
        gelu = ACTIVATIONS["gelu"]
        x = gelu(self.norm1(self.conv1(mask[..., None])))
        return self.conv3(gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    """Sparse embeddings of points and boxes, dense embeddings of masks."""

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs):
        dim = config.out_channels
        self.image_size = config.image_size
        self.grid_size = config.grid_size
        self.position = FourierEncoding(dim, rngs=rngs)
        # Rows: background point, foreground point, a box's top-left and bottom-right corner.
        self.point_embeddings = nnx.Param(normal(rngs.params(), (4, dim)))
        self.not_a_point_embed = nnx.Param(normal(rngs.params(), (dim,)))
        self.mask_downscaling = MaskDownscaling(config.mask_in_channels, dim, rngs=rngs)
        self.no_mask_embed = nnx.Param(normal(rngs.params(), (dim,)))

    def image_pe(self) -> Float[Array, "g g c"]:
        """Positional encoding of the centers of the image embedding's cells."""
        center = (jnp.arange(self.grid_size) + 0.5) / self.grid_size
        y, x = jnp.meshgrid(center, center, indexing="ij")
        return self.position(jnp.stack([x, y], axis=-1))

    def embed_points(
        self, points: Float[Array, "*b n 2"], labels: Int[Array, "*b n"]
    ) -> Float[Array, "*b n c"]:
        """Embed points.

        Args:
            points: (x, y) in pixels of the padded input; a pixel's center is at its index + 0.5.
            labels: 1 on the object, 0 off it, -1 no point, 2 and 3 a box's corners.
        """
        position = self.position((points + 0.5) / self.image_size)
        embedded = position + self.point_embeddings[...][jnp.maximum(labels, 0)]
        not_a_point = jnp.broadcast_to(self.not_a_point_embed[...], embedded.shape)
        return jnp.where(labels[..., None] == PADDING, not_a_point, embedded)

    def sparse(
        self,
        points: Float[Array, "*b n 2"] | None,
        labels: Int[Array, "*b n"] | None,
        boxes: Float[Array, "*b 4"] | None,
    ) -> Float[Array, "*b m c"]:
        """Embed the points and the box of each prompt, in this order.

        A padding point is added where there are points and no box: the decoder was trained so.

        Args:
            points: see `embed_points`.
            labels: see `embed_points`.
            boxes: (x0, y0, x1, y1) in pixels of the padded input.
        """
        parts = []
        if points is not None and labels is not None:
            parts.append((points, labels))
            if boxes is None:
                padding = jnp.full_like(labels[..., :1], PADDING)
                parts.append((jnp.zeros_like(points[..., :1, :]), padding))
        if boxes is not None:
            corners = rearrange(boxes, "... (n xy) -> ... n xy", n=2)
            parts.append((corners, jnp.broadcast_to(jnp.array(BOX_LABELS), corners.shape[:-1])))
        coordinates, kinds = zip(*parts, strict=True)
        return self.embed_points(jnp.concatenate(coordinates, -2), jnp.concatenate(kinds, -1))

    def dense(self, mask: Float[Array, "h w"] | None) -> Float[Array, "#g #g c"]:
        """Embed a mask prompt (logits, side ``mask_size``), or the absence of one."""
        if mask is None:
            return self.no_mask_embed[...][None, None]
        return self.mask_downscaling(mask[None])[0]
