"""SAM's mask decoder: image embedding and prompt embeddings to masks and their estimated IoU.

Original: facebookresearch/segment-anything, segment_anything/modeling/mask_decoder.py.

Deviations: for one prompt (callers map over prompts); only the masks that are asked for are made;
norm, GELU and the products with the masks' kernels run where the up-sampled cells come to be, and
only the masks are brought into the order of a map: equal up to rounding.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.layers import ACTIVATIONS, TransposedConv, layer_norm, linear
from sammi_jax.layers.init import normal
from sammi_jax.models.sam.transformer import TwoWayTransformer
from sammi_jax.typing import Array, Float


class MlpHead(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, depth: int, *, rngs: nnx.Rngs):
        sizes = [dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nnx.List([linear(sizes[i], sizes[i + 1], rngs=rngs) for i in range(depth)])

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """Apply to the last axis."""
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)


class OutputUpscaling(nnx.Module):
    """Image tokens at four times the resolution and an eighth of the channels, twice by two."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv1 = TransposedConv(dim, dim // 4, 2, rngs=rngs)
        self.norm = layer_norm(dim // 4, eps=1e-6, rngs=rngs)
        self.conv2 = TransposedConv(dim // 4, dim // 8, 2, rngs=rngs)

    def __call__(self, x: Float[Array, "n c"]) -> Float[Array, "n 4 4 d"]:
        """The 4 x 4 cells that each token becomes: quarters row by row, and their quarters."""
        gelu = ACTIVATIONS["gelu"]
        return gelu(self.conv2.in_place(gelu(self.norm(self.conv1.in_place(x)))))


class MaskDecoder(nnx.Module):
    """Masks of one prompt: the first token gives the single output, the others the multimask."""

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs):
        dim = config.out_channels
        num_masks = config.num_multimask_outputs + 1
        self.iou_token = nnx.Param(normal(rngs.params(), (1, dim)))
        self.mask_tokens = nnx.Param(normal(rngs.params(), (num_masks, dim)))
        self.transformer = TwoWayTransformer(config, rngs=rngs)
        self.output_upscaling = OutputUpscaling(dim, rngs=rngs)
        self.output_hypernetworks_mlps = nnx.List(
            [MlpHead(dim, dim, dim // 8, 3, rngs=rngs) for _ in range(num_masks)]
        )
        self.iou_prediction_head = MlpHead(
            dim, config.iou_head_hidden_dim, num_masks, config.iou_head_depth, rngs=rngs
        )

    def __call__(
        self,
        image: Float[Array, "g g c"],
        image_pe: Float[Array, "g g c"],
        sparse: Float[Array, "n c"],
        dense: Float[Array, "#g #g c"],
        multimask: bool,
    ) -> tuple[Float[Array, "m h w"], Float[Array, " m"]]:
        """Decode one prompt.

        Args:
            image: the image embedding.
            image_pe: its positional encoding.
            sparse: embedded points and boxes.
            dense: embedded mask, or the embedding of there being none.
            multimask: the multimask outputs, or the single one.

        Returns:
            Mask logits at four times the embedding's resolution, and the IoU that each is
            estimated to have with the true mask.
        """
        grid = image.shape[0]
        tokens = jnp.concatenate([self.iou_token[...], self.mask_tokens[...], sparse])
        flat = "h w c -> (h w) c"
        tokens, image = self.transformer(
            tokens, rearrange(image + dense, flat), rearrange(image_pe, flat)
        )
        upscaled = self.output_upscaling(image)
        num_masks = len(self.output_hypernetworks_mlps)
        wanted = range(1, num_masks) if multimask else range(1)
        kernels = [self.output_hypernetworks_mlps[i](tokens[1 + i]) for i in wanted]
        masks = jnp.einsum("nabc,mc->nabm", upscaled, jnp.stack(kernels))
        masks = rearrange(
            masks, "(h w) (i j) (k l) m -> m (h i k) (w j l)", h=grid, i=2, j=2, k=2, l=2
        )
        iou = self.iou_prediction_head(tokens[0])
        return masks, iou[wanted.start : wanted.stop]
