"""Model folders loaded for use: images and class names in, label maps out.

`load` gives a `Segmenter`; `towers.load_clip` a `ClipModel`, `towers.load_sam` a `SamModel`
(docs/python.md has examples).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.errors import SammiError
from sammi_jax.images import load_image
from sammi_jax.inference.classes import ClassList, make_class_list
from sammi_jax.inference.forward import ViewScores, blend_logits, forward_input
from sammi_jax.inference.inputs import SegmenterInput, stack_inputs
from sammi_jax.inference.result import Proposals, ScoreMaps, Segmentation
from sammi_jax.inference.text_prompted import CLASS_BUCKET, MASK_BUCKET, TextPrompted
from sammi_jax.inference.tiles import TileGrid
from sammi_jax.inference.towers import SamModel
from sammi_jax.inference.unrolled import unrolled_on_cpu
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.models.sammi import Sammi
from sammi_jax.ops.views import ViewLayout
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.typing import Array, Float, Int, NpArray, UInt8
from sammi_jax.weights.bundled import DEFAULT
from sammi_jax.weights.kinds import model_maker
from sammi_jax.weights.model_folder import load_tokenizer, read_model
from sammi_jax.weights.params import build


class Segmenter(TextPrompted):
    """CAT-Seg or SAM-MI: images and class names in, label maps out.

    Args:
        config: of the model.
        params: all its parameters and buffers by path.
        tokenizer: called when texts are first read.
        dtype: what matrix products compute in, "float32" or "bfloat16".
        keep_classes: decode only so many classes of each image, those that CLIP finds most like
            it; the others get no pixel. Long class lists take less time. None: all.
        memory_gib: memory of a device for the weights and the network, by its compiler's count;
            where the usual network needs more, a slower one with the same results is compiled.
            The read-out follows and takes its own (`Segmenter.memory`). None: without limit.

    Raises:
        SammiError: ``keep_classes`` below 1, or no positive ``memory_gib``.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        params: Mapping[str, Any],
        tokenizer: Callable[[], Tokenizer],
        dtype: str = "float32",
        keep_classes: int | None = None,
        memory_gib: float | None = None,
    ):
        if memory_gib is not None and not memory_gib > 0:
            raise SammiError(f"memory_gib {memory_gib:g}: give more than 0")
        if keep_classes is not None and keep_classes < 1:
            raise SammiError(f"keep_classes {keep_classes}: give at least 1")
        self._dtype, self.keep_classes = dtype, keep_classes
        super().__init__(config, build(model_maker(config), params, dtype), tokenizer, memory_gib)

    def replace_params(self, params: Mapping[str, Any]) -> None:
        """Use other parameters of the same shapes; compiled programs are kept."""
        module = build(model_maker(self.config), params, self._dtype)
        _, state = nnx.split(unrolled_on_cpu(module))
        self._replace_state(state)
        self.__dict__.pop("sam", None)  # it holds the old ones

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
        output = forward_input(self._merge(state), inputs, text, layout, self.keep_classes)
        return ViewScores(output.logits, output.proposals, output.regions)

    def blend(self, scores: ViewScores, layout: ViewLayout) -> Float[Array, "b t o o"]:
        """Class probabilities on the canvas."""
        return blend_logits(scores, self.config, layout)

    @cached_property
    def sam(self) -> SamModel | None:
        """The model's own SAM, to be asked by points and boxes; None for a CAT-Seg."""
        if self.config.masks is None:
            return None
        return SamModel(self.config.masks.sam, self._merge(self._state).sam)

    def segment(
        self,
        image: Any,
        class_names: Any,
        masks: Any = None,
        mask_quality: Any = None,
        *,
        background: str | None = None,
        threshold: float | None = None,
        text_embeddings: Any = None,
        tile: TileGrid | None = None,
        keep_scores: bool | None = None,
    ) -> Any:
        """Segment one image, or each of a list, into the named classes.

        Args:
            image: a path, a PIL image, uint8 RGB ``[H, W, 3]``, the bytes of an image file or an
                open one; or a list of these, of any sizes.
            class_names: one name a class; ``"sofa; couch"`` are synonyms. One text is taken for
                names with commas between them.
            masks: regions of the image, bool ``[n, H, W]``, from another tool or by hand, in the
                place of SAM's masks; they may overlap and leave pixels out. None: SAM's.
            mask_quality: for given masks: the IoU with a true region that is expected of each, in
                [0, 1], such as another SAM's estimate; None: ordinary, 0.75. The model follows
                good masks more closely.
            background: name of a class for what is none of the others (`classes.make_class_list`).
            threshold: pixels whose best score is lower are background.
            text_embeddings: of all texts, float ``[t, d]`` or ``[t, p, d]``, in the place of those
                of the class names (`TextPrompted.class_texts`).
            tile: segment the image tile by tile, at its own resolution; None: as a whole.
            keep_scores: whether the result can be asked for `Segmentation.scores`; None: for one
                image, and not for each of a list.

        Returns:
            A `Segmentation`, or a list of them.

        Raises:
            SammiError: an unreadable image, an unusable class list, no tokenizer, or masks of
                another size than the image or for a CAT-Seg.
        """
        classes = make_class_list(class_names, background, threshold)
        text = None
        if text_embeddings is not None:
            text = self.class_texts(text_embeddings, len(classes.texts))
        if isinstance(image, list | tuple):
            if masks is not None:
                raise SammiError("masks belong to one image: segment the images one by one")
            options = {"background": background, "threshold": threshold, "tile": tile}
            embeddings = {"text_embeddings": text_embeddings, "keep_scores": bool(keep_scores)}
            return [self.segment(i, class_names, **options, **embeddings) for i in image]
        pixels = load_image(image)
        if tile is not None:
            if masks is not None:
                raise SammiError("masks of a whole image cannot be cut into tiles: leave tile out")
            return self.segment_tiles(pixels, classes, tile, text)
        num_slots = MASK_BUCKET
        if masks is not None:
            masks = np.asarray(masks)
            if masks.dtype != bool and not np.isin(masks, (0, 1)).all():
                raise SammiError(f"masks of {masks.dtype}: give booleans, or zeros and ones")
            masks = masks.astype(bool)
            num_slots = max(1, -(-len(masks) // MASK_BUCKET)) * MASK_BUCKET
        quality = None if mask_quality is None else np.asarray(mask_quality, np.float32)
        inputs = self.prepare(pixels, masks=masks, num_slots=num_slots, mask_quality=quality)
        return self._results([pixels], inputs, classes, text, keep_scores is not False)[0]

    def segment_batch(
        self,
        images: Sequence[UInt8[NpArray, "_ _ 3"]],
        classes: ClassList,
        batch_size: int,
        text: ClassTexts | None = None,
    ) -> list[Segmentation]:
        """Segment images of any sizes that enter the network together; scores are not kept.

        Args:
            images: RGB; at most ``batch_size``.
            classes: the classes.
            batch_size: of the compiled program; the batch is filled up to it by copies.
            text: from `class_texts`; None: the classes' own.
        """
        inputs = [self.prepare(image) for image in images]
        inputs += inputs[-1:] * (batch_size - len(inputs))
        return self._results(images, stack_inputs(inputs), classes, text, keep_scores=False)

    def segment_tiles(
        self,
        image: UInt8[NpArray, "h w 3"],
        classes: ClassList,
        tiles: TileGrid,
        text: ClassTexts | None = None,
    ) -> Segmentation:
        """Segment an image tile by tile: memory for the labels and for one tile.

        There are no masks and points in the result, and no scores to be asked for.

        Args:
            image: RGB of any size.
            classes: the classes.
            tiles: their side, overlap and place.
            text: from `class_texts`; None: the classes' own.
        """
        size = (image.shape[0], image.shape[1])
        labels, confidence = np.zeros(size, np.int32), np.zeros(size, np.float32)
        for tile in tiles.cover(size):
            found = self.segment_batch([image[tile.rows, tile.columns]], classes, 1, text)[0]
            place = tile.kept_rows, tile.kept_columns
            labels[place] = found.labels[tile.inner]
            confidence[place] = found.confidence[tile.inner]
        return Segmentation(image, list(classes.names), labels, confidence)

    def memory(self, num_classes: int, size: tuple[int, int]) -> dict[str, int]:
        """Bytes that segmenting one image takes, from compiling the programs for it.

        Args:
            num_classes: how many texts.
            size: (height, width) of the image.

        Returns:
            ``weights``; ``network`` and ``readout``, which follow each other; ``result``: labels
            and scores of the best class at the image's size.
        """
        inputs = self.prepare(np.zeros((*size, 3), np.uint8))
        count = -(-num_classes // CLASS_BUCKET) * CLASS_BUCKET
        width = (count, self.config.aggregator.num_templates, self.config.clip.embed_dim)
        text = jax.eval_shape(lambda: ClassTexts(jnp.zeros(width), jnp.zeros(count, bool)))
        network, readout = self.programs(inputs, text, size)
        bytes_of = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
        return {
            "weights": bytes_of(self.state),
            "network": network.temp_size_in_bytes + network.output_size_in_bytes,
            "readout": readout.temp_size_in_bytes + readout.output_size_in_bytes,
            "result": 8 * size[0] * size[1],
        }

    def _results(
        self,
        images: Sequence[NpArray],
        inputs: SegmenterInput,
        classes: ClassList,
        text: ClassTexts | None,
        keep_scores: bool,
    ) -> list[Segmentation]:
        text = self.encode_classes(classes.texts) if text is None else text
        batch = jax.device_get(self.view_scores(inputs, text))
        results = []
        for index, image in enumerate(images):
            scores: ViewScores = jax.tree.map(lambda x, i=index: x[i : i + 1], batch)
            size = (image.shape[0], image.shape[1])
            confidence, labels = self.read_best(scores, text.mask, classes, size)
            results.append(
                Segmentation(
                    image=image,
                    class_names=list(classes.names),
                    labels=labels,
                    confidence=confidence,
                    proposals=Proposals.of_canvas(scores.proposals, size),
                    score_maps=self._score_maps(scores, classes, size) if keep_scores else None,
                )
            )
        return results

    def _score_maps(
        self, scores: ViewScores, classes: ClassList, size: tuple[int, int]
    ) -> ScoreMaps:
        def on_request(size: tuple[int, int] | None) -> NpArray:
            return classes.class_scores(self.read_scores(scores, len(classes.texts), size))

        return ScoreMaps(lambda: on_request(size), lambda: on_request(None))


def load(
    folder: Any = DEFAULT,
    dtype: str = "float32",
    *,
    keep_classes: int | None = None,
    memory_gib: float | None = None,
) -> Segmenter:
    """Load a CAT-Seg or SAM-MI model folder; without one, the bundled model of OpenShapes.

    Args:
        folder: of the model.
        dtype: what matrix products compute in, "float32" or "bfloat16".
        keep_classes: decode only so many classes of each image (`Segmenter`); None: all.
        memory_gib: for the weights and the network (`Segmenter`); None: without limit.

    Raises:
        SammiError: the folder is missing, damaged, or holds another kind of model.
    """
    model = read_model(folder, ["catseg", "sammi"])
    tokenizer = partial(load_tokenizer, folder, model.tokenizer_path, model.config)
    return Segmenter(model.config, model.params, tokenizer, dtype, keep_classes, memory_gib)
