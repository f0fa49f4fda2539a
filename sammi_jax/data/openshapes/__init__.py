"""OpenShapes: a procedural open-vocabulary data set, with the same pixels on every machine.

Scenes hold textured, colored shapes on patterned ground, with labels of instances and parts. Some
combinations of attributes never occur in training: a model knows them only from their words.
Reading order: vocabulary (classes, views, what is unseen), scenes, drawing, banks, bits; captions
(single-object images for a tiny CLIP), points (prompts and masks for a tiny SAM), tokenizer,
source.
"""

from sammi_jax.data.openshapes.captions import (
    CAPTION_SIZE,
    REGIMES,
    TEMPLATE,
    CaptionBatch,
    CaptionExample,
    caption_batch,
    caption_example,
    caption_text,
    captions_true_of,
)
from sammi_jax.data.openshapes.drawing import Scene
from sammi_jax.data.openshapes.parts import connected_parts
from sammi_jax.data.openshapes.points import point_targets
from sammi_jax.data.openshapes.scenes import SCENE_SIZE, SPLITS, scene
from sammi_jax.data.openshapes.source import NUM_EXAMPLES, OpenShapes, batch
from sammi_jax.data.openshapes.tokenizer import CONTEXT_LENGTH, build_tokenizer
from sammi_jax.data.openshapes.vocabulary import IGNORE_LABEL, VIEWS, View, get_view

__all__ = [
    "CAPTION_SIZE",
    "CONTEXT_LENGTH",
    "IGNORE_LABEL",
    "NUM_EXAMPLES",
    "REGIMES",
    "SCENE_SIZE",
    "SPLITS",
    "TEMPLATE",
    "VIEWS",
    "CaptionBatch",
    "CaptionExample",
    "OpenShapes",
    "Scene",
    "View",
    "batch",
    "build_tokenizer",
    "caption_batch",
    "caption_example",
    "caption_text",
    "captions_true_of",
    "connected_parts",
    "get_view",
    "point_targets",
    "scene",
]
