"""The forward pass of training."""

import jax.numpy as jnp

from sammi_jax.config.model import Remat
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.proposals import Perturb, SamEmbeddings, SamInput
from sammi_jax.models.sammi import Sammi, SegmenterOutput
from sammi_jax.ops.clip_image import clip_views
from sammi_jax.ops.sam_image import sam_crops
from sammi_jax.ops.views import ViewLayout
from sammi_jax.typing import Array, Bool, Float, Int


def forward_crops(
    model: Sammi,
    images: Float[Array, "b s s 3"],
    token_ids: Int[Array, "t p l"],
    class_mask: Bool[Array, " t"],
    pooling_size: int,
    remat: Remat = "none",
    perturb: Perturb | None = None,
    sam_embeddings: Float[Array, "b g g c"] | None = None,
) -> SegmenterOutput:
    """The forward pass of training: CLIP and SAM each see the whole of every square crop.

    Args:
        model: CAT-Seg or SAM-MI.
        images: RGB 0..255.
        token_ids: of the classes, for each prompt.
        class_mask: False for classes that only pad the axis.
        pooling_size: of the class attention.
        remat: which activations the backward pass recomputes.
        perturb: what changes SAM's masks, if anything.
        sam_embeddings: of the crops (`sam_crops`), where they were computed before.
    """
    config = model.config
    sam_input = None
    if config.masks is not None:
        side = config.masks.sam.image_size
        sizes = jnp.full((images.shape[0], 2), float(side))
        if sam_embeddings is None:
            sam_input = SamInput(sam_crops(images, side), sizes)
        else:
            sam_input = SamEmbeddings(sam_embeddings, sizes)
    return model(
        clip_views(images, config.clip_size)[:, None],
        sam_input,
        ClassTexts(model.encode_text(token_ids, remat), class_mask),
        layout=ViewLayout(config.aggregator.grid_size),
        pooling_size=pooling_size,
        remat=remat,
        perturb=perturb,
    )
