"""What users hold in their hands: model folders loaded, with text and pictures in and out.

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

from sammi_jax import inference
from sammi_jax.config import ClipConfig, SamConfig, SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.folder import ModelFolder, describe, read_model
from sammi_jax.images import (
    SegmenterInput,
    load_image,
    resize_short_side,
    segmenter_input,
)
from sammi_jax.kinds import model_maker
from sammi_jax.models.clip import Clip
from sammi_jax.models.sammi import Sammi, text_embeddings, view_layout
from sammi_jax.ops.views import ViewLayout
from sammi_jax.params import build
from sammi_jax.segmentation import Segmentation
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.text.vocabulary import check_class_names, prompts
from sammi_jax.typing import Array, Bool, Float, Int, NpArray

_CLASS_BUCKET = 8  # the class axis is padded to a multiple, so that few programs are compiled


class _Compiled:
    """A module split once, whose methods run under `jax.jit`."""

    def __init__(self, module: nnx.Module):
        self._graphdef, state = nnx.split(module)
        self._state = jax.device_put(state)
        self._jitted = jax.jit(self._call, static_argnums=(0,), static_argnames=("multimask",))

    def _call(self, method: str, state: nnx.State, *args, **kwargs):
        return getattr(nnx.merge(self._graphdef, state), method)(*args, **kwargs)

    def __call__(self, method: str, *args, **kwargs):
        return self._jitted(method, self._state, *args, **kwargs)


def _tokenizer(folder: str | Path, model: ModelFolder) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        SammiError: it holds none.
    """
    if model.tokenizer_path is None:
        raise SammiError(
            f"{folder}: no tokenizer.json, so text cannot be read; convert again with --tokenizer, "
            "a folder with tokenizer.json, vocab.json and merges.txt, or OpenAI's vocabulary"
        )
    return Tokenizer.from_folder(model.tokenizer_path.parent)


class ClipModel:
    """CLIP's towers, compiled, with the tokenizer of the model folder."""

    def __init__(self, folder: str | Path):
        self._folder = folder
        self._model = read_model(folder, ["clip"])
        self.config: ClipConfig = self._model.config
        self._run = _Compiled(build(model_maker(self.config), self._model.params))

    def encode_image(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b d"]:
        """Embeddings, not normalised, of CLIP-normalised images."""
        return self._run("encode_image", jnp.asarray(images))

    def encode_dense(
        self, images: Float[Array, "b s s 3"]
    ) -> tuple[Float[Array, "b h w d"], tuple[Array, Array]]:
        """Dense features in the joint space, and the two middle layers that CAT-Seg uses."""
        return self._run("encode_dense", jnp.asarray(images))

    def encode_text(self, token_ids: Int[Array, "n l"]) -> Float[Array, "n d"]:
        """Text embeddings, not normalised."""
        return self._run("encode_text", jnp.asarray(token_ids))

    def tokenize(self, texts: Sequence[str]) -> NpArray:
        """Token ids, int32 ``[n, context_length]``, zero padded.

        Raises:
            SammiError: the folder holds no tokenizer.
        """
        length = self.config.text.context_length
        return _tokenizer(self._folder, self._model)(list(texts), length)


class SamModel:
    """Segment Anything, compiled. Coordinates are pixels of the padded input."""

    def __init__(self, folder: str | Path):
        model = read_model(folder, ["sam"])
        self.config: SamConfig = model.config
        self._run = _Compiled(build(model_maker(self.config), model.params))

    def encode_image(self, images: Float[Array, "b s s 3"]) -> Float[Array, "b g g c"]:
        """Image embeddings of SAM-normalised, padded images."""
        return self._run("encode_image", jnp.asarray(images))

    def decode(
        self,
        embeddings: Float[Array, "b g g c"],
        points: Float[Array, "b k 2"],
        labels: Int[Array, "b k"],
        *,
        multimask: bool = True,
    ) -> tuple[Float[Array, "b k m h w"], Float[Array, "b k m"]]:
        """Mask logits and predicted IoU, one prompt for each point (x, y).

        Labels: 1 object, 0 background, -1 padding. ``m`` is 3, or 1 with ``multimask=False``.
        """
        return self._run(
            "decode",
            embeddings,
            jnp.asarray(points, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            multimask=multimask,
        )


class _TextPrompted:
    """A model that scores the classes of a text list at every place of an image.

    Text embeddings are kept for each class list that was used; the class axis is padded to a
    multiple of 8, so that one compiled program serves several lists.
    """

    config: SegmenterConfig

    def __init__(
        self, config: SegmenterConfig, module: nnx.Module, tokenizer: Callable[[], Tokenizer]
    ):
        self.config, self._tokenizer = config, tokenizer
        self._graphdef, state = nnx.split(module)
        self._state = jax.device_put(state)
        self._texts: dict[tuple[str, ...], tuple[Array, Array]] = {}
        self._encode_text = jax.jit(lambda state, ids: self._embed(self._merge(state), ids))
        self._predict = jax.jit(self._predict_batch)
        self._resize = jax.jit(inference.resize_scores, static_argnums=1)

    def _merge(self, state: nnx.State) -> Any:
        return nnx.merge(self._graphdef, state)

    def _embed(self, module: Any, token_ids: Array) -> Array:
        raise NotImplementedError

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text_features: Float[Array, "t p d"],
        class_mask: Bool[Array, " t"],
        layout: ViewLayout,
    ) -> inference.ViewScores:
        """Class maps of every view, from the parameters `state`: a pure function for `jax.jit`."""
        raise NotImplementedError

    def blend(
        self, maps: Float[Array, "b v t h w"], layout: ViewLayout
    ) -> Float[Array, "b t h2 w2"]:
        """Scores on the canvas from the maps of `views`."""
        raise NotImplementedError

    def _predict_batch(
        self, state: nnx.State, inputs: SegmenterInput, features: Array, mask: Array
    ) -> inference.Prediction:
        layout = view_layout(self.config)
        scores = self.views(state, inputs, features, mask, layout)
        return inference.Prediction(self.blend(scores.maps, layout), scores.proposals)

    @property
    def state(self) -> nnx.State:
        """All parameters and buffers, as `views` takes them."""
        return self._state

    def text_features(self, class_names: Sequence[str]) -> tuple[Array, Array]:
        """Embeddings ``[t, 1, d]`` of the classes and the class mask ``[t]``, both padded.

        Raises:
            SammiError: a folder without tokenizer.
        """
        names = tuple(class_names)
        if names not in self._texts:
            length = self.config.clip.text.context_length
            ids = self._tokenizer()(prompts(names, self.config.template), length)
            padding = -len(names) % _CLASS_BUCKET
            ids = np.concatenate([ids, np.repeat(ids[-1:], padding, axis=0)])
            mask = jnp.arange(len(ids)) < len(names)
            self._texts[names] = (self._encode_text(self._state, ids[:, None]), mask)
        return self._texts[names]

    def prepare(self, image: NpArray, config: SegmenterConfig | None = None) -> SegmenterInput:
        """One uint8 RGB image ``[H, W, 3]`` as this model wants it (host arrays, batch of one).

        ``config``, where given, has another canvas than the model's own.
        """
        if self.config.sliding is not None:
            image = resize_short_side(image)
        return segmenter_input(image, config or self.config)

    def predict_batch(
        self, inputs: SegmenterInput, class_names: Sequence[str]
    ) -> inference.Prediction:
        """Class scores ``[b, t, O, O]`` on the canvas, and the mask proposals, on the device."""
        features, mask = self.text_features(class_names)
        prediction = self._predict(self._state, inputs, features, mask)
        probabilities = prediction.probabilities[:, : len(class_names)]
        return inference.Prediction(probabilities, prediction.proposals)


class Segmenter(_TextPrompted):
    """CAT-Seg or SAM-MI: pictures and class names in, label maps out.

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
        """Take other parameters of the same shapes; what was compiled stays."""
        _, state = nnx.split(build(model_maker(self.config), params))
        self._state, self._texts = jax.device_put(state), {}

    def _embed(self, module: Sammi, token_ids: Array) -> Array:
        return module.encode_text(token_ids)

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text_features: Array,
        class_mask: Array,
        layout: ViewLayout,
    ) -> inference.ViewScores:
        """Logits of every view, and the masks."""
        output = inference.forward_input(
            self._merge(state), inputs, text_features, class_mask, layout
        )
        return inference.ViewScores(output.logits, output.proposals)

    def blend(self, maps: Float[Array, "b v t h w"], layout: ViewLayout) -> Float[Array, "b t o o"]:
        """Class probabilities on the canvas."""
        return inference.blend_logits(maps, self.config, layout)

    def segment(
        self, image: str | Path | Image.Image | NpArray, class_names: Sequence[str]
    ) -> Segmentation:
        """Segment one picture into the named classes.

        Args:
            image: a path, a PIL image, or uint8 RGB ``[H, W, 3]``.
            class_names: one name a class; "a, b" are synonyms, of which the first is used.

        Raises:
            SammiError: an unreadable picture, an empty or duplicated class list, no tokenizer.
        """
        class_names = check_class_names(class_names)
        pixels = load_image(image)
        prediction = self.predict_batch(self.prepare(pixels), class_names)
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
    """CLIP's cost map alone, as the baseline that the trained heads are measured against.

    Args:
        folder: a CLIP model folder.
        config: sizes and template of the segmenter that it is compared with.
    """

    def __init__(self, folder: str | Path, config: SegmenterConfig):
        model = read_model(folder, ["clip"])
        super().__init__(
            dataclasses.replace(config, clip=model.config, masks=None),
            build(model_maker(model.config), model.params),
            lambda: _tokenizer(folder, model),
        )

    def _embed(self, module: Clip, token_ids: Array) -> Array:
        return text_embeddings(module, token_ids)

    def views(
        self,
        state: nnx.State,
        inputs: SegmenterInput,
        text_features: Array,
        class_mask: Array,
        layout: ViewLayout,
    ) -> inference.ViewScores:
        """Cosines of every view."""
        del class_mask
        module = self._merge(state)
        return inference.zero_shot_views(module, inputs, text_features, self.config, layout)

    def blend(self, maps: Float[Array, "b v t h w"], layout: ViewLayout) -> Float[Array, "b t h w"]:
        """Cosines on the canvas."""
        return inference.blend_cosines(maps, self.config, layout)


def load_predictor(folder: str | Path, config: SegmenterConfig) -> Segmenter | ZeroShot:
    """What a model folder predicts label maps with; a CLIP folder does it zero-shot.

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
    return Segmenter(model.config, model.params, lambda: _tokenizer(folder, model))


def load_clip(folder: str | Path) -> ClipModel:
    """Load a CLIP model folder. Raises `SammiError` as `load` does."""
    return ClipModel(folder)


def load_sam(folder: str | Path) -> SamModel:
    """Load a SAM model folder. Raises `SammiError` as `load` does."""
    return SamModel(folder)
