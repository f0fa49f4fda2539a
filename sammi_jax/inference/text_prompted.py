"""What all models share that score the classes of a text list at every place of an image."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from sammi_jax.config.model import SegmenterConfig, view_layout
from sammi_jax.errors import SammiError
from sammi_jax.images import resize_short_side
from sammi_jax.inference.classes import ClassList
from sammi_jax.inference.forward import Prediction, ViewScores
from sammi_jax.inference.inputs import (
    SegmenterInput,
    canvas_masks,
    segmenter_input,
    stack_inputs,
)
from sammi_jax.inference.readout import PixelTaps, best_class, interpolate, read_stripes
from sammi_jax.inference.unrolled import unrolled_on_cpu
from sammi_jax.layers.pieces import cut_everywhere
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.ops.resize import bilinear_taps
from sammi_jax.ops.views import ViewLayout
from sammi_jax.parallel.mesh import AXES, batch_sharding, over_devices, replicated
from sammi_jax.text.tokenizer import Tokenizer, class_tokens
from sammi_jax.typing import Array, Float, Int, NpArray, UInt8

MASK_BUCKET = 16  # given masks are padded to a multiple, so that few programs are compiled
CLASS_BUCKET = 8  # so is the class axis; as many classes are read out at once


class TextPrompted:
    """A model that scores the classes of a text list at every place of an image.

    Text embeddings of each class list are kept. The class axis is padded to a multiple of 8, so
    that lists of similar length share one compiled program.
    """

    config: SegmenterConfig

    def __init__(
        self,
        config: SegmenterConfig,
        module: nnx.Module,
        tokenizer: Callable[[], Tokenizer],
        memory_gib: float | None = None,
    ):
        self.config, self._tokenizer, self.memory_gib = config, tokenizer, memory_gib
        self._fitting: dict[Any, Any] = {}  # compiled networks within ``memory_gib``, by shapes
        self._graphdef, state = nnx.split(unrolled_on_cpu(module))
        self._state = jax.device_put(state)
        self._texts: dict[tuple[str, ...], ClassTexts] = {}
        self._networks: dict[int, tuple[Mesh, Any]] = {}  # by number of devices,
        self._copies: dict[int, nnx.State] = {}  # and the parameters there
        self._encode_text = jax.jit(lambda state, ids: self._embed(self._merge(state), ids))
        self._predict = jax.jit(self._predict_batch)
        self._read = jax.jit(self._read_best)
        self._score = jax.jit(self._read_scores)

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
            padding = -len(names) % CLASS_BUCKET
            ids = np.concatenate([ids, np.repeat(ids[-1:], padding, axis=0)])
            mask = jnp.arange(len(ids)) < len(names)
            self._texts[names] = ClassTexts(self._encode_text(self._state, ids), mask)
        return self._texts[names]

    def class_texts(self, embeddings: Any, count: int) -> ClassTexts:
        """Text embeddings that were computed before, in the place of `encode_classes`'.

        Args:
            embeddings: float ``[t, d]`` or ``[t, p, d]`` of CLIP's joint space, of any length:
                they are scaled to unit length.
            count: the number of texts they belong to.

        Raises:
            SammiError: embeddings of another shape, or without a length.
        """
        array = np.asarray(embeddings, np.float32)
        array = array[:, None] if array.ndim == 2 else array
        want = (count, self.config.aggregator.num_templates, self.config.clip.embed_dim)
        if array.shape != want:
            raise SammiError(
                f"text embeddings {np.shape(embeddings)}: this model takes {list(want)}: classes "
                "(each synonym is one), prompt templates, CLIP's width"
            )
        length = np.linalg.norm(array, axis=-1, keepdims=True)
        if not (np.isfinite(length) & (length > 0)).all():
            raise SammiError("text embeddings: some are zero or not finite; compute them again")
        padding = -count % CLASS_BUCKET
        padded = np.concatenate([array / length, np.repeat((array / length)[-1:], padding, axis=0)])
        return ClassTexts(jnp.asarray(padded), jnp.arange(len(padded)) < count)

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

    def view_scores(self, inputs: SegmenterInput, text: ClassTexts) -> ViewScores:
        """Class maps of every view of a batch, spread over this process's devices.

        Images are computed one by one on each device, so that no number depends on the batch.

        Raises:
            SammiError: they need more memory than ``memory_gib``.
        """
        network, arguments = self._program(inputs, text)
        return network(*arguments)

    def check_memory(self, num_texts: int, batch_size: int = 1) -> None:
        """Compile the network within ``memory_gib``, before there is an image.

        Args:
            num_texts: how many texts will be asked for.
            batch_size: images that enter the network together.

        Raises:
            SammiError: it needs more memory.
        """
        if self.memory_gib is None:
            return
        count = -(-num_texts // CLASS_BUCKET) * CLASS_BUCKET
        width = (count, self.config.aggregator.num_templates, self.config.clip.embed_dim)
        blank = self.prepare(np.zeros((8, 8, 3), np.uint8))
        text = ClassTexts(jnp.zeros(width), jnp.zeros(count, bool))
        self._program(stack_inputs([blank] * batch_size), text)

    def _program(self, inputs: SegmenterInput, text: ClassTexts) -> tuple[Any, tuple[Any, ...]]:
        """The network, and its arguments on its devices."""
        size = inputs.canvas.shape[0]
        devices = jax.local_devices()
        count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
        if count not in self._networks:
            self._networks[count] = self._network(Mesh(np.array([devices[:count]]).T, AXES))
        mesh, network = self._networks[count]
        if count not in self._copies:
            spread = count > 1
            self._copies[count] = (
                jax.device_put(self._state, replicated(mesh)) if spread else self._state
            )
        inputs = jax.device_put(inputs, batch_sharding(mesh))
        arguments = (self._copies[count], inputs, text)
        if self.memory_gib is None:
            return network, arguments
        shapes = jax.tree.map(jnp.shape, arguments[1:])
        key = (count, *jax.tree.leaves(shapes))
        if key not in self._fitting:
            self._fitting[key] = self._fit(mesh, arguments, self.memory_gib)
        return self._fitting[key], arguments

    def _fit(self, mesh: Mesh, arguments: tuple[Any, ...], memory_gib: float) -> Any:
        """The compiled network; where the usual one needs too much memory, a slower one."""
        needs = []
        for cut in (False, True):
            network = self._network(mesh, cut)[1].lower(*arguments).compile()
            memory = network.memory_analysis()
            needs.append(
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                + memory.temp_size_in_bytes
            )
            if needs[-1] <= memory_gib * 2**30:
                return network
        num_classes = arguments[2].mask.shape[0]
        raise SammiError(
            f"{memory_gib:g} GiB of memory: this model needs {min(needs) / 2**30:.2f} for "
            f"{num_classes} classes; give that much, fewer classes, or keep_classes"
        )

    def _replace_state(self, state: nnx.State) -> None:
        """Use other parameters: nothing that was made of the old ones is kept."""
        self._state = jax.device_put(state)
        self._texts, self._copies, self._fitting = {}, {}, {}

    def _network(self, mesh: Mesh, cut: bool = False) -> tuple[Mesh, Any]:
        layout = view_layout(self.config)

        def local(state: nnx.State, inputs: SegmenterInput, text: ClassTexts) -> ViewScores:
            def one(image: SegmenterInput) -> ViewScores:
                image = jax.tree.map(lambda x: x[None], image)
                with cut_everywhere() if cut else nullcontext():
                    scores = self.views(state, image, text, layout)
                return jax.tree.map(lambda x: x[0], scores)

            return jax.lax.map(one, inputs)

        return mesh, jax.jit(over_devices(local, mesh, (None, AXES, None), AXES))

    def read_best(
        self, scores: ViewScores, mask: Array, classes: ClassList, size: tuple[int, int]
    ) -> tuple[Float[NpArray, "h w"], Int[NpArray, "h w"]]:
        """The best score of every pixel of one image, and its class, stripe by stripe.

        Args:
            scores: of `view_scores`, of one image (a batch of one).
            mask: which texts exist, bool ``[t]``.
            classes: what the texts belong to.
            size: (height, width) of the image.
        """

        def read(taps: PixelTaps) -> tuple[NpArray, NpArray]:
            score, text = (np.asarray(x) for x in self._read(scores, mask, taps))
            return score, classes.classes_of(text, score)

        return read_stripes(read, self._canvas_size(scores), size)

    def programs(self, inputs: SegmenterInput, text: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        """Memory of the compiled network and read-out (`jax.stages.Compiled.memory_analysis`).

        Args:
            inputs: of one image.
            text: `ClassTexts` of arrays or of their shapes.
            size: (height, width) of the image.
        """
        _, network = self._network(Mesh(np.array([jax.local_devices()[:1]]), AXES))
        scores = jax.eval_shape(network, self._state, inputs, text)
        taps: list[PixelTaps] = []

        def one_stripe(stripe: PixelTaps) -> tuple[NpArray, NpArray]:
            taps.append(stripe)
            shape = len(stripe.rows), len(stripe.columns)
            return np.zeros(shape, np.float32), np.zeros(shape, np.int32)

        read_stripes(one_stripe, self._canvas_size(scores), size)
        readout = self._read.lower(scores, text.mask, taps[0])
        compiled = (network.lower(self._state, inputs, text).compile(), readout.compile())
        first, second = (program.memory_analysis() for program in compiled)
        return first, second

    def _canvas_size(self, scores: ViewScores) -> tuple[int, int]:
        """(height, width) of the blended scores."""
        blend = lambda scores: self.blend(scores, view_layout(self.config))  # noqa: E731
        shape = jax.eval_shape(blend, scores).shape
        return shape[2], shape[3]

    def read_scores(
        self, scores: ViewScores, count: int, size: tuple[int, int] | None
    ) -> Float[NpArray, "t h w"]:
        """Scores of the first ``count`` texts at every pixel: ``4 t h w`` bytes.

        Args:
            scores: of `view_scores`, of one image (a batch of one).
            count: of texts.
            size: (height, width) of the image; None: the canvas as it is.
        """
        canvas = self._canvas_size(scores)
        size = size or canvas
        taps = PixelTaps(
            *bilinear_taps(canvas[0], size[0], size[0]), *bilinear_taps(canvas[1], size[1], size[1])
        )
        out = np.empty((count, *size), np.float32)
        for start in range(0, count, CLASS_BUCKET):
            texts = jnp.arange(start, start + CLASS_BUCKET)
            maps = np.asarray(self._score(scores, texts, taps))
            out[start : start + CLASS_BUCKET] = maps[: count - start]
        return out

    def _read_best(self, scores: ViewScores, mask: Array, taps: PixelTaps) -> tuple[Array, Array]:
        layout = view_layout(self.config)

        def canvas_maps(classes: Array) -> Array:
            return self.blend(scores.choose(classes), layout)[0]

        shape = (taps.rows.shape[0], taps.columns.shape[0])
        on_pixels = lambda maps: interpolate(maps, taps)  # noqa: E731
        mask = mask & scores.decoded()
        return best_class(canvas_maps, on_pixels, mask, CLASS_BUCKET, shape)

    def _read_scores(
        self, scores: ViewScores, texts: Array, taps: PixelTaps
    ) -> Float[Array, "k h w"]:
        return interpolate(self.blend(scores.choose(texts), view_layout(self.config))[0], taps)
