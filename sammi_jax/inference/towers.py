"""CLIP and SAM alone, loaded from model folders."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.model import ClipConfig, SamConfig
from sammi_jax.errors import SammiError
from sammi_jax.images import center_square, load_image
from sammi_jax.inference import prompting
from sammi_jax.inference.forward import sam_views
from sammi_jax.inference.inputs import sam_input
from sammi_jax.inference.prompting import Prompts, SamImage, SamMasks
from sammi_jax.inference.unrolled import unrolled_on_cpu
from sammi_jax.models.class_texts import text_embeddings
from sammi_jax.models.clip import Clip
from sammi_jax.models.sam.sam import Sam
from sammi_jax.ops.clip_image import clip_normalize
from sammi_jax.ops.cosine import l2_normalize
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.text.vocabulary import check_class_names
from sammi_jax.typing import Array, Float, Int, NpArray
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import load_tokenizer, read_model
from sammi_jax.weights.params import build

PROMPT_BUCKET = 8  # prompts are padded to a multiple, so that few programs are compiled
_CLIP_SCALE = 100.0  # CLIP's own inverse temperature, where its training stopped


class _Compiled:
    """A module whose methods run under `jax.jit`."""

    def __init__(self, module: nnx.Module):
        self._graphdef, state = nnx.split(unrolled_on_cpu(module))
        self._state = jax.device_put(state)
        self._jitted = jax.jit(self._call, static_argnums=(0,), static_argnames=("multimask",))

    def _call(self, method: str | Callable, state: nnx.State, *args, **kwargs):
        module = nnx.merge(self._graphdef, state)
        bound = getattr(module, method) if isinstance(method, str) else partial(method, module)
        return bound(*args, **kwargs)

    def __call__(self, method: str | Callable, *args, **kwargs):
        """Call a method by its name, or a function of the module."""
        return self._jitted(method, self._state, *args, **kwargs)


def _numbers(what: str, value: Any, want: str, fits: Callable[[tuple[int, ...]], bool]) -> Array:
    """An array argument, or a `SammiError` that says what is wanted."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        kind = type(value).__name__
        raise SammiError(f"{what} is a {kind}; give {want}") from error
    if not fits(array.shape):
        raise SammiError(f"{what} {list(array.shape)}: give {want}")
    return array


class ClipModel:
    """CLIP's towers, compiled, with a tokenizer.

    Args:
        config: of the towers.
        module: both towers.
        tokenizer: called when texts are first read.
    """

    def __init__(self, config: ClipConfig, module: Clip, tokenizer: Callable[[], Tokenizer]):
        self.config = config
        self._tokenizer = tokenizer
        self._run = _Compiled(module)

    @cached_property
    def _tokens(self) -> Tokenizer:
        return self._tokenizer()

    def _images(self, images: Any) -> Array:
        want = "CLIP-normalized floats [b, s, s, 3], s a multiple of the patch size " + str(
            self.config.vision.patch_size
        )
        return _numbers(
            "images",
            images,
            want,
            lambda shape: (
                len(shape) == 4
                and shape[3] == 3
                and shape[1] == shape[2]
                and shape[1] % self.config.vision.patch_size == 0
            ),
        ).astype(jnp.float32)

    def encode_image(self, images: Any) -> Float[Array, "b d"]:
        """Embeddings, not normalized, of CLIP-normalized images, float ``[b, s, s, 3]``.

        Raises:
            SammiError: an array of another shape.
        """
        return self._run("encode_image", self._images(images))

    def encode_dense(self, images: Any) -> tuple[Float[Array, "b h w d"], tuple[Array, Array]]:
        """Dense features in the joint space, and the two middle layers that CAT-Seg uses.

        Raises:
            SammiError: an array of another shape.
        """
        return self._run("encode_dense", self._images(images))

    def encode_text(self, token_ids: Any) -> Float[Array, "n d"]:
        """Text embeddings, not normalized, of token ids, int ``[n, l]``.

        Args:
            token_ids: ``l`` is at most the context length; what follows the end token is not read.

        Raises:
            SammiError: texts in the place of `tokenize`'s ids, or an array of another shape.
        """
        length = self.config.text.context_length
        want = f"token ids, int [n, at most {length}], from clip.tokenize(texts)"
        ids = _numbers(
            "token_ids", token_ids, want, lambda shape: len(shape) == 2 and 0 < shape[1] <= length
        )
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise SammiError(f"token_ids of {ids.dtype}: give {want}")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.config.text.vocab_size):
            raise SammiError(f"token_ids outside 0..{self.config.text.vocab_size - 1}: give {want}")
        return self._run("encode_text", ids)

    def tokenize(self, texts: Sequence[str]) -> NpArray:
        """Token ids, int32 ``[n, context_length]``, zero padded; one text is a list of one.

        Raises:
            SammiError: the folder holds no tokenizer.
        """
        return self._tokens(
            texts if isinstance(texts, str) else list(texts), self.config.text.context_length
        )

    def classify(
        self, image: Any, class_names: Any, templates: Sequence[str] = ("a photo of a {}.",)
    ) -> dict[str, float]:
        """The probability of each class name for a whole image, zero-shot (CLIP, section 3.1).

        Args:
            image: as for `Segmenter.segment`, one image.
            class_names: one name a class, or one text with commas between them.
            templates: prompts, whose unit-length embeddings are averaged.

        Raises:
            SammiError: an unreadable image, an unusable class list, or no tokenizer.
        """
        names = check_class_names(class_names)
        square = center_square(load_image(image), self.config.vision.image_size)
        ids = class_tokens(self._tokens, names, templates, self.config.text.context_length)
        text = self._run(_class_embeddings, jnp.asarray(ids))
        embedding = self.encode_image(clip_normalize(jnp.asarray(square, jnp.float32))[None])
        logits = _CLIP_SCALE * l2_normalize(embedding) @ text.T
        probabilities = np.asarray(jax.nn.softmax(logits[0]))
        return {name: float(value) for name, value in zip(names, probabilities, strict=True)}


class SamModel:
    """Segment Anything, compiled.

    `segment` and `everything` take images and their own pixels; `encode_image` and `decode` are the
    network itself, in pixels of the padded input.
    """

    def __init__(self, config: SamConfig, module: Sam):
        self.config = config
        self._run = _Compiled(module)

    def encode_image(self, images: Any) -> Float[Array, "b g g c"]:
        """Image embeddings of SAM-normalized, padded images, float ``[b, s, s, 3]``.

        Raises:
            SammiError: an array of another shape.
        """
        side = self.config.image_size
        array = _numbers(
            "images",
            images,
            f"SAM-normalized, padded floats [b, {side}, {side}, 3]; or use sam.embed(image)",
            lambda shape: len(shape) == 4 and shape[1:] == (side, side, 3),
        )
        return self._run("encode_image", array.astype(jnp.float32))

    def decode(
        self, embeddings: Any, points: Any, labels: Any, *, multimask: bool = True
    ) -> tuple[Float[Array, "b k m h w"], Float[Array, "b k m"]]:
        """Mask logits and predicted IoU, one prompt for each point (x, y).

        Args:
            embeddings: from `encode_image`, ``[b, g, g, c]``.
            points: float ``[b, k, 2]``.
            labels: int ``[b, k]``: 1 object, 0 background, -1 padding.
            multimask: three masks a point (``m`` is 3), or one.

        Raises:
            SammiError: arrays of other shapes.
        """
        grid, channels = self.config.grid_size, self.config.out_channels
        images = _numbers(
            "embeddings",
            embeddings,
            f"[b, {grid}, {grid}, {channels}] from sam.encode_image",
            lambda shape: len(shape) == 4 and shape[1:] == (grid, grid, channels),
        )
        batch = images.shape[0]
        xy = _numbers(
            "points",
            points,
            f"(x, y) as [{batch}, k, 2]",
            lambda shape: len(shape) == 3 and shape[0] == batch and shape[2] == 2,
        )
        kinds = _numbers(
            "labels", labels, f"{list(xy.shape[:2])}, one a point", lambda s: s == xy.shape[:2]
        )
        return self._run(
            "decode",
            images,
            xy.astype(jnp.float32),
            kinds.astype(jnp.int32),
            multimask=multimask,
        )

    def embed(self, image: Any) -> SamImage:
        """Encode an image once, to ask about it several times.

        Args:
            image: as for `Segmenter.segment`, one image; one that is encoded stays as it is.

        Raises:
            SammiError: an unreadable image.
        """
        if isinstance(image, SamImage):
            return image
        pixels = load_image(image)
        padded, size = sam_input(pixels, self.config.image_size)
        prepared = sam_views(jnp.asarray(padded[None]), jnp.asarray(size[None]))
        return SamImage(pixels, self._run("encode_image", prepared.images))

    def segment(
        self,
        image: Any,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        *,
        multimask: bool | None = None,
    ) -> SamMasks:
        """Masks of an image for prompts in its own pixels.

        Args:
            image: as for `Segmenter.segment`, one image, or from `embed`.
            points: (x, y): ``[p, 2]``, all of one object, or ``[k, p, 2]``, of k objects.
            labels: 1 on the object, 0 off it, of the points' shape; None: all on it.
            boxes: x0, y0, x1, y1: ``[4]`` or ``[k, 4]``.
            masks: the ``logits`` of an earlier result.
            multimask: True: three masks a prompt, n = 3 k. False: SAM's single mask. None: of a
                prompt of one point, which may mean a part, the object or a group, the mask that
                SAM expects to be best; else the single one.

        Raises:
            SammiError: an unreadable image, or prompts that do not fit it (`make_prompts`).
        """
        found = self.embed(image)
        side, mask_side = self.config.image_size, self.config.mask_size
        prompts = prompting.make_prompts(found, side, mask_side, points, labels, boxes, masks)
        ambiguous = prompts.boxes is None and prompts.masks is None
        if prompts.points is not None:
            ambiguous &= prompts.points.shape[1] == 1
        three = ambiguous if multimask is None else multimask
        logits, iou = self._ask(found, prompts, three)
        if multimask is None and three:
            best = iou.argmax(axis=1)[:, None]
            iou = np.take_along_axis(iou, best, axis=1)
            logits = np.take_along_axis(logits, best[..., None, None], axis=1)
        return self._masks(found, logits.reshape(-1, *logits.shape[2:]), iou.ravel())

    def _ask(
        self, image: SamImage, prompts: Prompts, multimask: bool
    ) -> tuple[Float[NpArray, "k m h w"], Float[NpArray, "k m"]]:
        """Logits and IoU of the prompts, whose number is padded."""

        def padded(array: NpArray | None) -> Array | None:
            if array is None:
                return None
            copies = np.repeat(array[-1:], -prompts.count % PROMPT_BUCKET, axis=0)
            return jnp.asarray(np.concatenate([array, copies])[None])

        arguments = map(padded, (prompts.points, prompts.labels, prompts.boxes, prompts.masks))
        logits, iou = self._run("decode_prompts", image.embedding, *arguments, multimask=multimask)
        return np.asarray(logits[0, : prompts.count]), np.asarray(iou[0, : prompts.count])

    def _masks(
        self,
        image: SamImage,
        logits: Float[NpArray, "n m m"],
        iou: Float[NpArray, " n"],
        points: NpArray | None = None,
    ) -> SamMasks:
        frame = prompting.make_frame(image.size, self.config.image_size, self.config.mask_size)
        stability, boxes = self._measure(logits, frame)
        masks = prompting.on_image(logits, frame, image.size)
        return SamMasks(masks, iou, stability, boxes, logits, points)

    def _measure(
        self, logits: Float[NpArray, "n m m"], frame: prompting.Frame
    ) -> tuple[NpArray, NpArray]:
        copies = np.zeros((-len(logits) % PROMPT_BUCKET, *logits.shape[1:]), np.float32)
        values = jnp.asarray(np.concatenate([logits, copies]))
        measured = prompting.measure(values, frame.rows, frame.columns, frame.inside)
        stability, boxes = (np.asarray(x)[: len(logits)] for x in measured)
        return stability, boxes

    def everything(
        self,
        image: Any,
        grid: int = 32,
        *,
        min_iou: float = 0.88,
        min_stability: float = 0.95,
        max_overlap: float = 0.7,
    ) -> SamMasks:
        """All masks that a grid of points finds, best first (SAM's automatic mask generation).

        Args:
            image: as for `Segmenter.segment`, one image, or from `embed`.
            grid: points along a side.
            min_iou: masks of which SAM expects less are left out.
            min_stability: masks that depend more on their threshold are left out.
            max_overlap: of two masks whose boxes have a larger IoU the better one stays.

        Raises:
            SammiError: an unreadable image, or a grid without points.
        """
        if grid < 1:
            raise SammiError(f"grid of {grid} points a side: give at least 1")
        found = self.embed(image)
        points = prompting.grid(grid, found.size)
        frame = prompting.make_frame(found.size, self.config.image_size, self.config.mask_size)
        kept: list[tuple[NpArray, ...]] = []
        for start in range(0, len(points), prompting.POINTS_AT_ONCE):
            some = points[start : start + prompting.POINTS_AT_ONCE]
            logits, iou = self._ask(found, self._points(found, some), multimask=True)
            origin = np.repeat(some, iou.shape[1], axis=0)
            logits, iou = logits.reshape(-1, *logits.shape[2:]), iou.ravel()
            good = iou > min_iou
            logits, iou, origin = logits[good], iou[good], origin[good]
            stability, boxes = self._measure(logits, frame)
            stable = stability >= min_stability
            kept.append(tuple(x[stable] for x in (logits, iou, boxes, origin)))
        logits, iou, boxes, origin = (np.concatenate(part) for part in zip(*kept, strict=True))
        best = _best_boxes(boxes, iou, max_overlap)
        return self._masks(found, logits[best], iou[best], origin[best])

    def _points(self, image: SamImage, points: Float[NpArray, "n 2"]) -> Prompts:
        """Each point a prompt of its own."""
        side, mask_side = self.config.image_size, self.config.mask_size
        return prompting.make_prompts(image, side, mask_side, points[:, None], None, None, None)


def _best_boxes(boxes: NpArray, iou: NpArray, max_overlap: float) -> NpArray:
    """Indices of the boxes that `prompting.suppress` leaves, best first."""
    padding = -len(iou) % prompting.POINTS_AT_ONCE
    padded = np.pad(boxes.astype(np.float32), ((0, padding), (0, 0)))
    scores = np.pad(iou, (0, padding), constant_values=-np.inf)
    if not len(scores):
        return np.zeros(0, np.int64)
    order, keep = prompting.suppress(padded, scores, max_overlap=max_overlap)
    return np.asarray(order)[np.asarray(keep)]


def _class_embeddings(clip: Clip, token_ids: Int[Array, "t p l"]) -> Float[Array, "t d"]:
    """The mean of the prompts' unit-length embeddings, of unit length again."""
    return l2_normalize(text_embeddings(clip, token_ids).mean(axis=1))


def load_clip(folder: Any) -> ClipModel:
    """Load a CLIP model folder. Raises `SammiError` as `load` does."""
    model = read_model(folder, ["clip"])
    module: Any = build(model_maker(model.config), model.params)
    return ClipModel(
        model.config, module, partial(load_tokenizer, folder, model.tokenizer_path, model.config)
    )


def load_sam(folder: Any) -> SamModel:
    """Load a SAM model folder, or the SAM of a SAM-MI. Raises `SammiError` as `load` does."""
    model = read_model(folder, ["sam", "sammi"])
    module: Any = build(model_maker(model.config), model.params)
    if model.kind == "sam":
        return SamModel(model.config, module)
    return SamModel(model.config.masks.sam, module.sam)
