"""The classes of an image as CLIP's text tower sees them."""

from dataclasses import dataclass

import jax
from einops import rearrange

from sammi_jax.config.model import Remat
from sammi_jax.models.clip import Clip
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.ops.sharding import spread, whole
from sammi_jax.typing import Array, Int, Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassTexts:
    """Text embeddings of every class and template; the class axis may be padded."""

    features: Leaf  # F_t [t, p, d], unit length
    mask: Leaf  # [t] bool, False for classes that only pad the axis


def text_embeddings(clip: Clip, token_ids: Int[Array, "t p l"], remat: Remat = "none") -> Array:
    """Unit-length CLIP embeddings ``[t, p, d]`` of every class and template."""
    # All images share the texts, so every device of a pod would encode all of them, which is more
    # work than its images: each takes a share instead.
    texts = spread(rearrange(token_ids, "t p l -> (t p) l"))
    features = whole(l2_normalize(clip.encode_text(texts, remat)))
    return rearrange(features, "(t p) d -> t p d", p=token_ids.shape[1])
