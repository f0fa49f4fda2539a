"""Segment Anything: an image and prompts (points, boxes, masks) to masks.

Kirillov et al., Segment Anything, 2023 (https://arxiv.org/abs/2304.02643); original:
facebookresearch/segment-anything, segment_anything/modeling/sam.py. Pixels are prepared and masks
brought back to the original image by `sammi_jax.ops.sam_image`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from sammi_jax.config.model import SamConfig
from sammi_jax.errors import SammiError
from sammi_jax.models.sam.image_encoder import ImageEncoder
from sammi_jax.models.sam.mask_decoder import MaskDecoder
from sammi_jax.models.sam.prompt_encoder import PromptEncoder
from sammi_jax.typing import Array, Float, Int

PROMPT_CHUNK = 4  # prompts of an image that are decoded at once
CPU_PROMPTS = 1  # the same on a CPU: more would leave its cache


class Sam(nnx.Module):
    """Image encoder, prompt encoder and mask decoder."""

    def __init__(self, config: SamConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image_encoder = ImageEncoder(config, rngs=rngs)
        self.prompt_encoder = PromptEncoder(config, rngs=rngs)
        self.mask_decoder = MaskDecoder(config, rngs=rngs)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the image embeddings: what the encoder's products compute in."""
        return self.image_encoder.patch_embed.projection.kernel[...].dtype

    @jax.named_scope("sam_encoder")
    def encode_image(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b g g c"]:
        """Embed normalized, zero-padded images of side ``image_size``."""
        return self.image_encoder(image)

    def decode(
        self,
        embeddings: Float[Array, "b g g c"],
        points: Float[Array, "b k 2"],
        labels: Int[Array, "b k"],
        multimask: bool = True,
    ) -> tuple[Float[Array, "b k m h w"], Float[Array, "b k m"]]:
        """Decode each point as a prompt of its own.

        Args:
            embeddings: see `encode_image`.
            points: (x, y) in pixels of the padded input.
            labels: 1 on the object, 0 off it, -1 padding (its masks mean nothing).
            multimask: the three multimask outputs, or the single one.

        Returns:
            Mask logits at four times the embedding's resolution, and estimated IoU.
        """
        return self.decode_prompts(
            embeddings, points[:, :, None], labels[:, :, None], multimask=multimask
        )

    @jax.named_scope("sam_decoder")
    def decode_prompts(
        self,
        embeddings: Float[Array, "b g g c"],
        points: Float[Array, "b k p 2"] | None = None,
        labels: Int[Array, "b k p"] | None = None,
        boxes: Float[Array, "b k 4"] | None = None,
        masks: Float[Array, "b k h w"] | None = None,
        multimask: bool = True,
    ) -> tuple[Float[Array, "b k m h w"], Float[Array, "b k m"]]:
        """Decode ``k`` prompts an image, each of ``p`` points, a box, a mask, or several of these.

        Args:
            embeddings: see `encode_image`.
            points: (x, y) in pixels of the padded input.
            labels: 1 on the object, 0 off it, -1 no point.
            boxes: (x0, y0, x1, y1) in pixels of the padded input.
            masks: logits of an earlier decoding, side ``mask_size``.
            multimask: the three multimask outputs, or the single one.

        Returns:
            As `decode`.

        Raises:
            SammiError: no prompt, or points without labels.
        """
        given = next((x for x in (points, boxes, masks) if x is not None), None)
        if given is None:
            raise SammiError("SAM has no prompt: give points with labels, boxes or masks")
        if (points is None) != (labels is None):
            raise SammiError("SAM's points and labels belong together: give both or neither")
        if points is None and boxes is None:
            sparse = jnp.zeros((*given.shape[:2], 0, embeddings.shape[-1]), embeddings.dtype)
        else:
            # Positions are computed in float32 and then take the embedding's type.
            sparse = self.prompt_encoder.sparse(points, labels, boxes).astype(embeddings.dtype)
        image_pe = self.prompt_encoder.image_pe().astype(embeddings.dtype)

        def decode_one(image: Array, sparse: Array, mask: Array | None) -> tuple[Array, Array]:
            dense = self.prompt_encoder.dense(mask)
            return self.mask_decoder(image, image_pe, sparse, dense, multimask)

        # Images stay side by side, so that they may be sharded; prompts are processed in chunks.
        prompts = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (sparse, masks))

        def decode_all(prompts: tuple[Array, Array | None], chunk: int) -> tuple[Array, Array]:
            return jax.lax.map(
                lambda prompt: jax.vmap(decode_one)(embeddings, *prompt),
                prompts,
                batch_size=min(chunk, given.shape[1]),
            )

        out = jax.lax.platform_dependent(
            prompts,
            cpu=partial(decode_all, chunk=CPU_PROMPTS),
            default=partial(decode_all, chunk=PROMPT_CHUNK),
        )
        low_res_masks, iou = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).astype(jnp.float32), out)
        return low_res_masks, iou
