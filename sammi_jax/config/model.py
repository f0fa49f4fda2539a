"""The models' sizes and options, as frozen dataclasses.

Defaults are the published ViT-B sizes. Fields marked [ours] are not given by the SAM-MI paper
(docs/method.md). A configuration is plain data: building, printing or comparing one touches no
device. ``config.json`` holds what `to_dict` gives; `from_dict` is its exact inverse.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

from sammi_jax.errors import SammiError
from sammi_jax.ops.views import ViewLayout
from sammi_jax.text.vocabulary import check_templates

T = TypeVar("T")
# Activations that the backward pass recomputes: none; all but the results of matrix products; all
# but the inputs of CLIP's blocks and of the aggregation's stages.
Remat = Literal["none", "elementwise", "full"]


@dataclass(frozen=True)
class ClipVisionConfig:
    """CLIP's image tower (openai/CLIP clip/model.py, VisionTransformer)."""

    image_size: int = 224  # side of the native input; the position table belongs to it
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12

    @property
    def grid_size(self) -> int:
        """Patches along a side of the native input."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text tower (openai/CLIP clip/model.py, CLIP.encode_text)."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8


@dataclass(frozen=True)
class ClipConfig:
    """Both towers and the joint space."""

    vision: ClipVisionConfig = ClipVisionConfig()
    text: ClipTextConfig = ClipTextConfig()
    embed_dim: int = 512
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"  # OpenCLIP's LAION models: "gelu"
    eps: float = 1e-5


@dataclass(frozen=True)
class SamConfig:
    """Segment Anything (facebookresearch/segment-anything build_sam.py).

    The encoder is ``num_stages`` times (windowed blocks, then one global block).
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    num_stages: int = 4
    mlp_ratio: int = 4
    window_size: int = 14
    out_channels: int = 256  # width of the image embedding and of the whole decoder
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    mask_in_channels: int = 16  # hidden width of the mask prompt's down-scaling
    decoder_eps: float = 1e-5  # two-way transformer's norms: 1e-5 originally, 1e-6 in transformers

    @property
    def grid_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks."""
        return 4 * self.grid_size


@dataclass(frozen=True)
class AggregatorConfig:
    """CAT-Seg's cost aggregation and decoder (cat_seg/modeling/transformer/model.py)."""

    hidden_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    window_size: int = 12
    grid_size: int = 24  # side of the cost map
    pooling_size: int = 2  # class attention's average pooling in training; evaluation uses 1
    num_templates: int = 1  # channels of the cost map: one for each of SegmenterConfig.templates
    appearance_dim: int = 128  # projected appearance guidance
    text_dim: int = 128  # projected text guidance
    decoder_dims: tuple[int, int] = (64, 32)
    decoder_guidance_dims: tuple[int, int] = (256, 128)  # channels of F_h1, F_h2
    decoder_guidance_proj_dims: tuple[int, int] = (32, 16)
    pad_length: int = 256  # classes are padded to, or cut down to, this number; 0: neither
    attention: Literal["linear", "full"] = "linear"
    cost_skip: bool = False  # [ours] add the scaled raw cost to the logits; CAT-Seg has none


@dataclass(frozen=True)
class TsppConfig:
    """Text-guided Sparse Point Prompter. All fields are [ours] (method.md section 2)."""

    num_points: int = 64  # slots K; how many are valid depends on the image
    dim: int | None = None  # width of the two heads; None: CLIP's, so that they start as CLIP
    scale: float = 100.0  # initial temperature of the class distribution (CLIP's own)
    min_score: float = 0.05  # tau: a point below it is not valid
    sigma: float = 3.0  # radius of the suppression, in cells of the cost map
    interior: bool = True  # prefer cells whose neighbors agree: points inside regions
    loss_weight: float = 0.5


@dataclass(frozen=True)
class MaskFilterConfig:
    """Which SAM masks are used. All fields are [ours] (method.md section 3)."""

    min_iou: float = 0.7  # SAM's own estimate
    min_stability: float = 0.7
    stability_offset: float = 1.0
    min_area: float = 1e-4  # fraction of the image
    max_area: float = 0.95


@dataclass(frozen=True)
class SmaggConfig:
    """Shallow Mask Aggregation. All fields are [ours] (method.md section 4)."""

    # Pixels of the masks, 8 a cell, by which they grow before they are tested for touching.
    dilation: int = 1
    min_containment: float = 0.5
    min_feature_similarity: float = 0.9
    min_class_similarity: float = 0.9


@dataclass(frozen=True)
class DmiConfig:
    """Decoupled Mask Injection. All fields are [ours] (method.md section 5)."""

    low: bool = True  # mask context into F_l and beside the cost map's embedding
    high: bool = True  # high frequencies into F_h1 and F_h2
    decoder: bool = True  # the regions' class evidence behind both decoder blocks
    smoothing: bool = True  # each class's logits are pulled toward their mean in every mask
    num_heads: int = 8


@dataclass(frozen=True)
class MaskConfig:
    """SAM and the heads that SAM-MI adds to CAT-Seg. None turns a part off."""

    sam: SamConfig = SamConfig()
    tspp: TsppConfig | None = TsppConfig()  # None: a plain grid of points
    grid_points: int = 8  # points along a side where there is no TSPP (ablation; SAM's own: 32)
    filter: MaskFilterConfig = MaskFilterConfig()
    smagg: SmaggConfig | None = SmaggConfig()  # None: SAM's masks as they are
    dmi: DmiConfig = DmiConfig()


@dataclass(frozen=True)
class SlidingConfig:
    """Sliding-window inference (docs/method.md, 8): windows of ``crop_size`` and a global view."""

    output_size: int = 640  # the image is resized to a square of this side
    stride: int = 256


@dataclass(frozen=True)
class SegmenterConfig:
    """CAT-Seg, or SAM-MI where ``masks`` is given."""

    clip: ClipConfig = ClipConfig()
    aggregator: AggregatorConfig = AggregatorConfig()
    masks: MaskConfig | None = None
    crop_size: int = 384  # side of training crops and of inference windows, in pixels
    clip_size: int = 384  # side of CLIP's input; crops are resized to it
    taps: tuple[int, int] = (3, 7)  # image-tower blocks whose output becomes F_h1 and F_h2
    # Prompts of a class, {} in place of its name: aggregator.num_templates of them.
    templates: tuple[str, ...] = ("A photo of a {} in the scene",)
    sliding: SlidingConfig | None = SlidingConfig()  # None: the whole image as one view


CLIP_SIZES: dict[str, ClipConfig] = {
    "vitb16": ClipConfig(),
    "vitl14": ClipConfig(
        vision=ClipVisionConfig(224, 14, 1024, 24, 16),
        text=ClipTextConfig(width=768, num_heads=12),
        embed_dim=768,
    ),
    "vitl14_336": ClipConfig(
        vision=ClipVisionConfig(336, 14, 1024, 24, 16),
        text=ClipTextConfig(width=768, num_heads=12),
        embed_dim=768,
    ),
    # The tiny models that `make demo` trains. This CLIP is trained on 48 pixels and used on 96.
    "openshapes": ClipConfig(
        vision=ClipVisionConfig(image_size=48, patch_size=8, width=96, num_layers=3, num_heads=4),
        text=ClipTextConfig(vocab_size=30, context_length=12, width=96, num_layers=2, num_heads=4),
        embed_dim=96,
    ),
}

SAM_SIZES: dict[str, SamConfig] = {
    "vitb": SamConfig(),
    "vitl": SamConfig(width=1024, num_layers=24, num_heads=16),
    "vith": SamConfig(width=1280, num_layers=32, num_heads=16),
    "openshapes": SamConfig(
        image_size=96,
        patch_size=4,
        width=64,
        num_layers=3,
        num_heads=4,
        num_stages=1,
        window_size=8,
        out_channels=64,
        decoder_heads=4,
        decoder_mlp_dim=128,
        iou_head_hidden_dim=64,
        mask_in_channels=4,
    ),
}

SEGMENTER_SIZES: dict[str, SegmenterConfig] = {
    "vitb16": SegmenterConfig(),
    "vitl14_336": SegmenterConfig(clip=CLIP_SIZES["vitl14_336"], clip_size=336, taps=(7, 15)),
    "openshapes": SegmenterConfig(
        clip=CLIP_SIZES["openshapes"],
        aggregator=AggregatorConfig(
            hidden_dim=16,
            num_layers=1,
            window_size=6,
            grid_size=12,
            pooling_size=1,
            appearance_dim=32,
            text_dim=32,
            decoder_dims=(16, 8),
            decoder_guidance_dims=(32, 16),
            decoder_guidance_proj_dims=(8, 4),
            pad_length=0,
            cost_skip=True,
        ),
        crop_size=96,
        clip_size=96,
        taps=(0, 1),
        sliding=None,
    ),
}


def view_layout(config: SegmenterConfig) -> ViewLayout:
    """The views of inference: one for ``sliding=None``, else windows and a global view."""
    window = config.aggregator.grid_size
    if config.sliding is None:
        return ViewLayout(window)
    cell = config.crop_size // window
    stride = Fraction(config.sliding.stride, cell)
    return ViewLayout(
        window, stride, 1 + (config.sliding.output_size - config.crop_size) // config.sliding.stride
    )


_MOST = 2**20  # of any whole number of a model
_MOST_OF_A_SIDE = 4096  # pixels or cells
_MOST_LAYERS = 512
_SIDES = (
    *("image_size", "patch_size", "window_size", "grid_size", "crop_size", "clip_size", "stride"),
    *("output_size", "pooling_size", "grid_points"),
)
_LAYERS = ("num_layers", "num_stages", "decoder_layers", "iou_head_depth")


def check_sizes(config: Any, where: str = "") -> None:
    """Check that no number of a model's configuration is absurd, before a model is made of it.

    Args:
        config: of a CLIP, a SAM or a segmenter, or one of its parts.
        where: path of the part.

    Raises:
        SammiError: a size is negative or far beyond that of any model, or a number not finite.
    """
    for field in fields(config):
        path, value = f"{where}{field.name}", getattr(config, field.name)
        most = _MOST_LAYERS if field.name in _LAYERS else _MOST
        most = _MOST_OF_A_SIDE if field.name in _SIDES else most
        for number in value if isinstance(value, tuple) else (value,):
            if is_dataclass(number):
                check_sizes(number, f"{path}.")
            elif isinstance(number, int) and not 0 <= number <= most:
                raise SammiError(f"{path} {number}: must be from 0 to {most}")
            elif isinstance(number, float) and not math.isfinite(number):
                raise SammiError(f"{path} {number}: must be finite")


def check_config(config: SegmenterConfig) -> None:
    """Check that sizes fit together.

    Raises:
        SammiError: they do not; the message names the fields and what they should be.
    """
    check_templates(config.templates)
    if len(config.templates) != config.aggregator.num_templates:
        raise SammiError(
            f"templates: {len(config.templates)} given, but aggregator.num_templates is "
            f"{config.aggregator.num_templates}: the cost map has one channel for each template"
        )
    grid, vision = config.aggregator.grid_size, config.clip.vision
    if config.clip_size != grid * vision.patch_size:
        raise SammiError(
            f"clip_size {config.clip_size} must be aggregator.grid_size x clip.vision.patch_size "
            f"= {grid} x {vision.patch_size} = {grid * vision.patch_size}"
        )
    if config.crop_size % grid:
        raise SammiError(
            f"crop_size {config.crop_size} must be a multiple of aggregator.grid_size {grid}"
        )
    if not 0 <= config.taps[0] < config.taps[1] < vision.num_layers:
        raise SammiError(
            f"taps {config.taps} must ascend and lie below clip.vision.num_layers "
            f"{vision.num_layers}"
        )
    sliding, cell = config.sliding, config.crop_size // grid
    if sliding is None:
        return
    if sliding.stride < 1 or (sliding.output_size - config.crop_size) % sliding.stride:
        raise SammiError(
            f"sliding.output_size {sliding.output_size} must be crop_size {config.crop_size} plus "
            f"a multiple of sliding.stride {sliding.stride}"
        )
    if config.masks is not None and sliding.stride % cell:
        raise SammiError(
            f"sliding.stride {sliding.stride} must be a multiple of a cell's {cell} pixels in a "
            "model with masks, whose points and masks are made for the cells of the whole canvas"
        )
