"""CLIP alone as a segmenter: the baseline of the trained models."""

import dataclasses
from functools import partial

from flax import nnx

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.inference.forward import ViewScores, blend_cosines, zero_shot_views
from sammi_jax.inference.inputs import SegmenterInput
from sammi_jax.inference.segmenter import Segmenter, load
from sammi_jax.inference.text_prompted import TextPrompted
from sammi_jax.models.class_texts import ClassTexts, text_embeddings
from sammi_jax.models.clip import Clip
from sammi_jax.object_store import PathLike
from sammi_jax.ops.views import ViewLayout
from sammi_jax.typing import Array, Float, Int
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import describe, load_tokenizer, read_model
from sammi_jax.weights.params import build


class ZeroShot(TextPrompted):
    """CLIP's cost map alone: the baseline of the trained models.

    Args:
        folder: a CLIP model folder.
        config: sizes and templates of the segmenter that it is compared with. Any number of
            templates: a class's text feature is the mean of their unit-length embeddings.
        dtype: what matrix products compute in, "float32" or "bfloat16".
    """

    def __init__(self, folder: PathLike, config: SegmenterConfig, dtype: str = "float32"):
        model = read_model(folder, ["clip"])
        super().__init__(
            dataclasses.replace(config, clip=model.config, masks=None),
            build(model_maker(model.config), model.params, dtype),
            partial(load_tokenizer, folder, model.tokenizer_path, model.config),
        )

    def _embed(self, module: Clip, token_ids: Int[Array, "t p l"]) -> Float[Array, "t 1 d"]:
        # CLIP's own ensemble of prompts (arXiv 2103.00020, section 3.1.4): the mean of unit vectors
        return text_embeddings(module, token_ids).mean(axis=1, keepdims=True)

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text: ClassTexts,
        layout: ViewLayout,
    ) -> ViewScores:
        """Cosines of every view."""
        module = self._merge(state)
        return zero_shot_views(module, inputs, text, self.config, layout)

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Float[Array, "b t h2 w2"]:
        """Cosines on the canvas."""
        return blend_cosines(scores, self.config, layout)


def load_predictor(
    folder: PathLike,
    config: SegmenterConfig,
    dtype: str = "float32",
    keep_classes: int | None = None,
) -> Segmenter | ZeroShot:
    """The model of a folder, to predict label maps with; a CLIP does it zero-shot.

    Args:
        folder: a CAT-Seg, SAM-MI or CLIP model folder.
        config: for a CLIP: sizes and templates of the segmenter that it is compared with.
        dtype: what matrix products compute in, "float32" or "bfloat16".
        keep_classes: as for `load`; a CLIP decodes no classes.

    Raises:
        SammiError: the folder is missing, damaged, or holds a SAM; or a CLIP should keep classes.
    """
    kind = describe(folder, ["catseg", "sammi", "clip"]).kind
    if kind != "clip":
        return load(folder, dtype, keep_classes=keep_classes)
    if keep_classes is not None:
        raise SammiError(f"{folder}: is a CLIP, which scores all classes; leave keep_classes out")
    return ZeroShot(folder, config, dtype)
