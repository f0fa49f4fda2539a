"""The segmenter and its text encoder as StableHLO programs (`jax.export`), weights as inputs.

The numbers of images ``b`` and of classes ``t`` are symbolic. Only one choice in the model depends
on the number of classes: with more than ``aggregator.pad_length`` of them, CAT-Seg's head keeps the
best (`models.aggregator`). Such a model becomes two segmenter programs, one for each case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sammi_jax.config.model import SegmenterConfig, view_layout
from sammi_jax.errors import SammiError
from sammi_jax.inference.inputs import SegmenterInput, segmenter_input
from sammi_jax.inference.segmenter import Segmenter
from sammi_jax.models.class_texts import ClassTexts
from sammi_jax.text.tokenizer import Tokenizer
from sammi_jax.typing import Array, Bool, Float, Int
from sammi_jax.weights.kinds import expected_params, model_maker
from sammi_jax.weights.params import build

PLATFORMS = ("cpu", "cuda", "tpu")  # of one program, unless others are asked for
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
TEXT_ENCODER, SEGMENTER = "text_encoder", "segmenter"
IMAGE_ARRAYS = ("canvas", "overview", "sam_image", "sam_size")  # of `SegmenterInput`


@dataclass(frozen=True)
class Program:
    """One exported program, and the numbers of classes that it takes.

    Attributes:
        role: `TEXT_ENCODER` or `SEGMENTER`.
        exported: serialize it to have the file.
        inputs: its arguments as shapes and dtypes, by name, in their order, without the weights.
        min_classes: the fewest classes.
        max_classes: the most; None: any number.
    """

    role: str
    exported: export.Exported
    inputs: Mapping[str, Any]
    min_classes: int = 1
    max_classes: int | None = None

    @property
    def outputs(self) -> Any:
        """Shapes and dtypes of what it returns."""
        return jax.tree.unflatten(self.exported.out_tree, self.exported.out_avals)


def encode_text(
    config: SegmenterConfig, weights: Mapping[str, Any], token_ids: Int[Array, "t p l"]
) -> Float[Array, "t p d"]:
    """Unit-length text features of every class and prompt template: the first program."""
    module: Any = build(model_maker(config), weights)
    return module.encode_text(token_ids)


def segment(
    config: SegmenterConfig,
    weights: Mapping[str, Any],
    image: Mapping[str, Array],
    text_features: Float[Array, "t p d"],
    class_mask: Bool[Array, " t"],
) -> dict[str, Array]:
    """Class probabilities on the canvas, masks and points: the second program.

    Args:
        config: of the model.
        weights: all parameters and buffers by path.
        image: the arrays of `SegmenterInput` that the model uses, by their names there.
        text_features: of `encode_text`.
        class_mask: False for classes that only pad the axis.

    Returns:
        ``probabilities`` ``[b, t, O, O]``, 0 for masked classes; of a SAM-MI also ``masks``
        ``[b, n, G, G]`` bool on the canvas, ``mask_valid`` and ``mask_quality`` ``[b, n]``,
        ``points`` ``[b, k, 2]`` (x, y) as fractions of the image, and ``point_valid`` ``[b, k]``.
    """
    model = Segmenter(config, weights, _no_tokenizer)
    inputs = SegmenterInput(*(image.get(name) for name in IMAGE_ARRAYS))
    layout = view_layout(config)
    scores = model.views(model.state, inputs, ClassTexts(text_features, class_mask), layout)
    probabilities = model.blend(scores, layout)
    # smoothing may have pulled on classes that only pad the axis
    outputs = {"probabilities": jnp.where(class_mask[None, :, None, None], probabilities, 0.0)}
    found = scores.proposals
    if found is None:
        return outputs
    return {
        **outputs,
        "masks": found.masks,
        "mask_valid": found.valid,
        "mask_quality": found.quality,
        "points": found.points,
        "point_valid": found.point_valid,
    }


def _no_tokenizer() -> Tokenizer:
    raise SammiError("a program takes token ids, not texts")


def export_programs(config: SegmenterConfig, platforms: Sequence[str] = PLATFORMS) -> list[Program]:
    """Trace and lower the text encoder and the segmenter; no weights are needed.

    Args:
        config: of a CAT-Seg or SAM-MI.
        platforms: what the programs can run on, of `KNOWN_PLATFORMS`; the machine that exports
            needs none of them.

    Raises:
        SammiError: an unknown platform, or none.
    """
    platforms = tuple(dict.fromkeys(platforms))
    unknown = [name for name in platforms if name not in KNOWN_PLATFORMS]
    if unknown or not platforms:
        what = f"platform {unknown[0]!r} is unknown" if unknown else "no platform is named"
        raise SammiError(f"{what}; give some of {', '.join(KNOWN_PLATFORMS)}")
    limit = config.aggregator.pad_length
    programs = [
        _export_text_encoder(config, platforms),
        _export_segmenter(config, platforms, 1, limit or None),
    ]
    if limit:
        programs.append(_export_segmenter(config, platforms, limit + 1, None))
    return programs


def _export_text_encoder(config: SegmenterConfig, platforms: Sequence[str]) -> Program:
    (classes,) = export.symbolic_shape("t")
    shape = (classes, len(config.templates), config.clip.text.context_length)
    inputs = {"token_ids": jax.ShapeDtypeStruct(shape, jnp.int32)}
    exported = _export(lambda *args: encode_text(config, *args), config, inputs, platforms)
    return Program(TEXT_ENCODER, exported, inputs)


def _export_segmenter(
    config: SegmenterConfig, platforms: Sequence[str], min_classes: int, max_classes: int | None
) -> Program:
    ends = [f"t >= {min_classes}"]
    if max_classes is not None:
        ends.append(f"t <= {max_classes}")
    batch, classes = export.symbolic_shape("b, t", constraints=ends)
    features = (classes, len(config.templates), config.clip.embed_dim)
    example = segmenter_input(np.zeros((1, 1, 3), np.uint8), config)
    arrays = {name: getattr(example, name) for name in IMAGE_ARRAYS}
    inputs = {
        "image": {
            name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)
            for name, array in arrays.items()
            if array is not None
        },
        "text_features": jax.ShapeDtypeStruct(features, jnp.float32),
        "class_mask": jax.ShapeDtypeStruct((classes,), jnp.bool_),
    }
    exported = _export(lambda *args: segment(config, *args), config, inputs, platforms)
    return Program(SEGMENTER, exported, inputs, min_classes, max_classes)


def _export(
    function: Any, config: SegmenterConfig, inputs: Mapping[str, Any], platforms: Sequence[str]
) -> export.Exported:
    weights = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype)
        for name, value in expected_params(config).items()
    }
    return export.export(jax.jit(function), platforms=platforms)(weights, *inputs.values())
