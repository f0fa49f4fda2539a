"""Model folders loaded for use: images and class names in, label maps out.

`load` gives a `Segmenter`, `load_clip` a `ClipModel`, `load_sam` a `SamModel`
(docs/python.md has examples).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from sammi_jax.config.model import SegmenterConfig, view_layout
from sammi_jax.errors import SammiError
from sammi_jax.images import load_image, resize_short_side
from sammi_jax.inference.forward import (
    Prediction,
    ViewScores,
    blend_cosines,
    blend_logits,
    forward_input,
    resize_scores,
    zero_shot_views,
)
from sammi_jax.inference.inputs import SegmenterInput, canvas_masks, segmenter_input
from sammi_jax.inference.result import Segmentation
from sammi_jax.models.class_texts import ClassTexts, text_embeddings
from sammi_jax.models.clip import Clip
from sammi_jax.models.sammi import Sammi
from sammi_jax.ops.views import ViewLayout
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.text.vocabulary import check_class_names
from sammi_jax.typing import Array, Float, Int, NpArray, UInt8
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import describe, load_tokenizer, read_model
from sammi_jax.weights.params import build

MASK_BUCKET = 16  # given masks are padded to a multiple, for the same reason
_CLASS_BUCKET = 8  # the class axis is padded to a multiple, so that few programs are compiled


class _TextPrompted:
    """A model that scores the classes of a text list at every place of an image.

    Text embeddings of each class list are kept. The class axis is padded to a multiple of 8, so
    that lists of similar length share one compiled program.
    """

    config: SegmenterConfig

    def __init__(
        self, config: SegmenterConfig, module: nnx.Module, tokenizer: Callable[[], Tokenizer]
    ):
        self.config, self._tokenizer = config, tokenizer
        self._graphdef, state = nnx.split(module)
        self._state = jax.device_put(state)
        self._texts: dict[tuple[str, ...], ClassTexts] = {}
        self._encode_text = jax.jit(lambda state, ids: self._embed(self._merge(state), ids))
        self._predict = jax.jit(self._predict_batch)
        self._resize = jax.jit(resize_scores, static_argnums=1)

    def _merge(self, state: nnx.State) -> Any:
        return nnx.merge(self._graphdef, state)

    def _embed(self, module: Any, token_ids: Int[Array, "t p l"]) -> Float[Array, "t p2 d"]:
        """Text embeddings of every class: one for each template, or their mean."""
        raise NotImplementedError

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text: ClassTexts,
        layout: ViewLayout,
    ) -> ViewScores:
        """Class maps of every view, from the parameters `state`: a pure function for `jax.jit`."""
        raise NotImplementedError

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Float[Array, "b t h2 w2"]:
        """Scores on the canvas from those of `views`."""
        raise NotImplementedError

    def _predict_batch(
        self, state: nnx.State, inputs: SegmenterInput, text: ClassTexts
    ) -> Prediction:
        layout = view_layout(self.config)
        scores = self.views(state, inputs, text, layout)
        return Prediction(self.blend(scores, layout), scores.proposals)

    @property
    def state(self) -> nnx.State:
        """All parameters and buffers, as `views` takes them."""
        return self._state

    def encode_classes(self, class_names: Sequence[str]) -> ClassTexts:
        """The classes' text embeddings, the class axis padded.

        Raises:
            SammiError: the model folder has no tokenizer, or it cannot express a class name.
        """
        names = tuple(class_names)
        if names not in self._texts:
            length = self.config.clip.text.context_length
            ids = class_tokens(self._tokenizer(), names, self.config.templates, length)
            padding = -len(names) % _CLASS_BUCKET
            ids = np.concatenate([ids, np.repeat(ids[-1:], padding, axis=0)])
            mask = jnp.arange(len(ids)) < len(names)
            self._texts[names] = ClassTexts(self._encode_text(self._state, ids), mask)
        return self._texts[names]

    def prepare(
        self,
        image: UInt8[NpArray, "h w 3"],
        config: SegmenterConfig | None = None,
        masks: NpArray | None = None,
        num_slots: int = MASK_BUCKET,
        mask_quality: NpArray | None = None,
    ) -> SegmenterInput:
        """One RGB image as this model wants it (host arrays, batch of one).

        Args:
            image: the pixels.
            config: with another canvas than the model's own; None: the model's.
            masks: regions of the image, bool ``[n, H, W]``, in the place of SAM's masks.
            num_slots: how many masks the arrays hold, where masks are given.
            mask_quality: as for `Segmenter.segment`.

        Raises:
            SammiError: masks that do not fit the image, the model or the slots, or a quality
                without masks.
        """
        config, given = config or self.config, None
        if masks is None and mask_quality is not None:
            raise SammiError("mask_quality belongs to given masks: give masks as well")
        if masks is not None:
            given = canvas_masks(masks, image.shape[:2], config, num_slots, mask_quality)
        if self.config.sliding is not None:
            image = resize_short_side(image)
        return segmenter_input(image, config, given)

    def predict_batch(self, inputs: SegmenterInput, class_names: Sequence[str]) -> Prediction:
        """Class scores ``[b, t, O, O]`` on the canvas, and the mask proposals, on the device."""
        prediction = self._predict(self._state, inputs, self.encode_classes(class_names))
        probabilities = prediction.probabilities[:, : len(class_names)]
        return Prediction(probabilities, prediction.proposals)


class Segmenter(_TextPrompted):
    """CAT-Seg or SAM-MI: images and class names in, label maps out.

    Args:
        config: of the model.
        params: all its parameters and buffers by path.
        tokenizer: called when texts are first read.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        params: Mapping[str, Any],
        tokenizer: Callable[[], Tokenizer],
    ):
        super().__init__(config, build(model_maker(config), params), tokenizer)

    def replace_params(self, params: Mapping[str, Any]) -> None:
        """Use other parameters of the same shapes; compiled programs are kept."""
        _, state = nnx.split(build(model_maker(self.config), params))
        self._state, self._texts = jax.device_put(state), {}

    def _embed(self, module: Sammi, token_ids: Int[Array, "t p l"]) -> Float[Array, "t p d"]:
        return module.encode_text(token_ids)

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text: ClassTexts,
        layout: ViewLayout,
    ) -> ViewScores:
        """Logits of every view, the masks and what they say of the classes."""
        output = forward_input(self._merge(state), inputs, text, layout)
        return ViewScores(output.logits, output.proposals, output.regions)

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Float[Array, "b t o o"]:
        """Class probabilities on the canvas."""
        return blend_logits(scores, self.config, layout)

    def segment(
        self,
        image: str | Path | Image.Image | NpArray,
        class_names: Sequence[str],
        masks: NpArray | None = None,
        mask_quality: Sequence[float] | NpArray | None = None,
    ) -> Segmentation:
        """Segment one image into the named classes.

        Args:
            image: a path, a PIL image, or uint8 RGB ``[H, W, 3]``.
            class_names: one name a class; "a, b" are synonyms, of which the first is used. One
                text is taken for names with commas between them.
            masks: regions of the image, bool ``[n, H, W]``, from another tool or by hand, in the
                place of SAM's masks; they may overlap and leave pixels out. None: SAM's.
            mask_quality: for given masks: the IoU with a true region that is expected of each, in
                [0, 1], such as another SAM's estimate; None: ordinary, 0.75. The model follows
                good masks more closely.

        Raises:
            SammiError: an unreadable image, an empty or duplicated class list, no tokenizer, or
                masks of another size than the image or for a CAT-Seg.
        """
        class_names = check_class_names(class_names)
        pixels = load_image(image)
        num_slots = MASK_BUCKET
        if masks is not None:
            masks = np.asarray(masks, bool)
            num_slots = max(1, -(-len(masks) // MASK_BUCKET)) * MASK_BUCKET
        quality = None if mask_quality is None else np.asarray(mask_quality, np.float32)
        inputs = self.prepare(pixels, masks=masks, num_slots=num_slots, mask_quality=quality)
        prediction = self.predict_batch(inputs, class_names)
        size = pixels.shape[:2]
        scores = np.asarray(self._resize(prediction.probabilities[0], size))
        points, masks = np.zeros((0, 2), np.float32), np.zeros((0, *size), bool)
        if prediction.proposals is not None:
            first = jax.tree.map(lambda x: np.asarray(x[0]), prediction.proposals)
            points = first.points[first.point_valid] * np.array([size[1], size[0]], np.float32)
            soft = self._resize(first.masks.astype(np.float32), size)
            masks = (np.asarray(soft) >= 0.5)[first.valid]
        return Segmentation(
            image=pixels,
            class_names=class_names,
            labels=scores.argmax(axis=0).astype(np.int32),
            scores=scores,
            points=points,
            masks=masks,
        )


class ZeroShot(_TextPrompted):
    """CLIP's cost map alone: the baseline of the trained models.

    Args:
        folder: a CLIP model folder.
        config: sizes and templates of the segmenter that it is compared with. Any number of
            templates: a class's text feature is the mean of their unit-length embeddings.
    """

    def __init__(self, folder: str | Path, config: SegmenterConfig):
        model = read_model(folder, ["clip"])
        super().__init__(
            dataclasses.replace(config, clip=model.config, masks=None),
            build(model_maker(model.config), model.params),
            lambda: load_tokenizer(folder, model),
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
        return blend_cosines(scores, layout)


def load_predictor(folder: str | Path, config: SegmenterConfig) -> Segmenter | ZeroShot:
    """The model of a folder, to predict label maps with; a CLIP does it zero-shot.

    Args:
        folder: a CAT-Seg, SAM-MI or CLIP model folder.
        config: for a CLIP: sizes and templates of the segmenter that it is compared with.

    Raises:
        SammiError: the folder is missing, damaged, or holds a SAM.
    """
    kind = describe(folder, ["catseg", "sammi", "clip"]).kind
    return ZeroShot(folder, config) if kind == "clip" else load(folder)


def load(folder: str | Path) -> Segmenter:
    """Load a CAT-Seg or SAM-MI model folder.

    Raises:
        SammiError: the folder is missing, damaged, or holds another kind of model.
    """
    model = read_model(folder, ["catseg", "sammi"])
    return Segmenter(model.config, model.params, lambda: load_tokenizer(folder, model))
