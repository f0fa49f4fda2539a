"""A tokenizer of the words of OpenShapes, with the special tokens of CLIP's."""

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from sammi_jax.data.openshapes.captions import TEMPLATE
from sammi_jax.data.openshapes.vocabulary import ANY_SHAPE, COLORS, PATTERNS, SHAPES, TEXTURES

CONTEXT_LENGTH = 16  # the longest name in the template takes 12
PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> tokenizers.Tokenizer:
    """One id for each word: padding is 0, start and end have the last two ids, end the largest.

    (CLIP reads a text's feature at the largest id.) Case is ignored; texts are cut and padded to
    ``CONTEXT_LENGTH``. Encoding an unknown word raises an error.
    """
    template = TEMPLATE.format("").lower().split()
    words = dict.fromkeys((*template, *TEXTURES, *COLORS, ANY_SHAPE, *SHAPES, *PATTERNS))
    ids = {token: i for i, token in enumerate((PAD, *words, START, END))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([PAD, START, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(token, ids[token]) for token in (START, END)]
    )
    tokenizer.enable_truncation(CONTEXT_LENGTH)
    tokenizer.enable_padding(length=CONTEXT_LENGTH, pad_id=ids[PAD], pad_token=PAD)
    return tokenizer
