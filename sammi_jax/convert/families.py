"""Which kind of model a checkpoint holds, by the beginnings of its keys."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint, recognized before any table is used.

    Attributes:
        kind: the model folder's kind.
        title: for messages.
        marks: beginnings of keys; the checkpoint has a key for each of them.
    """

    kind: str
    title: str
    marks: tuple[str, ...]


# In this order: CAT-Seg's checkpoints hold a whole CLIP under a prefix.
_FAMILIES = (
    Family("catseg", "CAT-Seg", ("sem_seg_head.predictor.",)),
    Family("sam", "SAM (Meta)", ("image_encoder.patch_embed.", "mask_decoder.")),
    Family("sam", "SAM (Hugging Face)", ("vision_encoder.patch_embed.", "mask_decoder.")),
    Family("clip", "CLIP (Hugging Face)", ("vision_model.embeddings.", "text_model.embeddings.")),
    Family("clip", "CLIP (OpenAI)", ("visual.class_embedding", "token_embedding.")),
)


# Models with parts of the same names that are other models, by keys that only they have.
_RELATIVES = (
    ("MobileSAM", "image_encoder.patch_embed.seq."),
    ("SAM-HQ", "mask_decoder.hf_token."),
    ("SAM 2", "image_encoder.trunk."),
    ("SAM 2 (Hugging Face)", "vision_encoder.backbone."),
)


def relative_of(keys: Iterable[str]) -> str | None:
    """The name of a known model that looks like one of the families and is none, or None."""
    keys = list(keys)
    for title, mark in _RELATIVES:
        if any(key.startswith(mark) for key in keys):
            return title
    return None


def family_of(keys: Iterable[str]) -> Family | None:
    """The family of the keys, or None."""
    keys = list(keys)
    for family in _FAMILIES:
        if all(any(key.startswith(mark) for key in keys) for mark in family.marks):
            return family
    return None
