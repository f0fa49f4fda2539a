"""What an experiment is, as frozen dataclasses.

A configuration file is Python that defines ``config``, a `TrainConfig`; its docstring gives the
command, the hardware, the time and the expected result. Building one touches no device.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from sammi_jax.config.model import ClipConfig, Remat, SamConfig, SegmenterConfig
from sammi_jax.errors import SammiError

C = TypeVar("C")

OPENSHAPES = "openshapes"  # the data set that needs no folder


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from. OpenShapes is computed from indices and needs no folder."""

    # "openshapes", or a set that 'sammi datasets prepare' made, such as "coco_stuff_171/train".
    name: str = OPENSHAPES
    data_dir: str | None = None  # where prepared sets are
    num_examples: int | None = None  # train on the first ones only; None: all
    # Photographs: "random" is CAT-Seg's crop, mirror and color jitter; "none" the whole image
    # squashed to the crop's side, the same in every epoch. OpenShapes has neither.
    augment: Literal["random", "none"] = "random"
    workers: int = 0  # processes that decode and crop; 0: threads of the training process
    view: Literal["os48", "os168"] = "os48"  # OpenShapes: the vocabulary of the labels
    # OpenShapes: "strict" withholds unseen combinations from the captions too.
    regime: Literal["web", "strict"] = "web"


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a cosine schedule to zero; defaults are CAT-Seg's (docs/catseg.md part e)."""

    peak_lr: float = 2e-4
    warmup_steps: int = 0  # linear, from zero
    weight_decay: float = 1e-4  # norms have none
    b2: float = 0.999
    clip_norm: float = 0.01  # global norm of the trainable gradients
    # Matrices learn by Muon (https://kellerjordan.github.io/posts/muon) at this multiple of the
    # learning rate, the rest by AdamW with Nesterov momentum; None: plain AdamW throughout.
    muon_ratio: float | None = None


@dataclass(frozen=True)
class MeshConfig:
    """Devices as a grid: batches are split over both axes, large parameters over ``fsdp``."""

    fsdp: int = 1  # must divide the devices of a slice; the other axis takes the rest
    # TPU slices, or GPU nodes, that are joined by a slower network only (DCN): what is sharded by
    # ``fsdp`` stays inside one, and only gradients are summed over all.
    slices: int = 1


@dataclass(frozen=True)
class TaskConfig:
    """Base of the three tasks' configurations; ``kind`` names the task."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class CaptionConfig(TaskConfig):
    """A CLIP learns image-text alignment, dense too (docs/openshapes.md)."""

    kind: ClassVar[str] = "caption"
    model: ClipConfig = ClipConfig()


@dataclass(frozen=True)
class PromptConfig(TaskConfig):
    """A SAM learns point -> whole, part, subpart: its three outputs have fixed targets here.

    Raises:
        SammiError: weights of the outputs that are negative or all zero.
    """

    kind: ClassVar[str] = "prompt"
    model: SamConfig = SamConfig()
    points_per_image: int = 8
    # Of the whole, the part and the subpart in the loss, as shares of their sum.
    output_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    focal_weight: float = 20.0  # dice and IoU have 1: SAM's own (arXiv 2304.02643, appendix A)

    def __post_init__(self):
        each = all(weight >= 0.0 for weight in self.output_weights)
        if not (each and 0.0 < sum(self.output_weights) < math.inf):
            raise SammiError(
                f"output_weights={self.output_weights}: give three numbers of 0 or more, not all 0"
            )


@dataclass(frozen=True)
class MaskNoiseConfig:
    """Noise on SAM's masks in training [ours]: each mask is changed in one way, or in none.

    Raises:
        SammiError: a rate outside [0, 1], rates whose sum is above 1, or a size below 1.
    """

    drop: float = 0.0  # rates: shares of the masks that are lost,
    dilate: float = 0.0  # grow,
    erode: float = 0.0  # shrink,
    shift: float = 0.0  # or move
    # In pixels of the canvas, of which there are 8 a cell of the cost map along a side.
    radius: int = 4  # by which a mask grows or shrinks
    max_shift: int = 8  # rows and columns by which it moves: uniform in plus or minus this

    def __post_init__(self):
        rates = {name: getattr(self, name) for name in ("drop", "dilate", "erode", "shift")}
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0:
                raise SammiError(f"mask_noise.{name}={rate}: give a rate between 0 and 1")
        if math.fsum(rates.values()) > 1.0 + 1e-9:
            given = " + ".join(f"{name} {rate:g}" for name, rate in rates.items() if rate)
            raise SammiError(
                f"mask_noise: a mask is changed in one way only, so the rates' sum must not be "
                f"above 1: {given}"
            )
        for name in ("radius", "max_shift"):
            if getattr(self, name) < 1:
                raise SammiError(f"mask_noise.{name}={getattr(self, name)}: give at least 1 pixel")


@dataclass(frozen=True)
class SegmentConfig(TaskConfig):
    """CAT-Seg or SAM-MI learns from label maps of the seen classes."""

    kind: ClassVar[str] = "segment"
    model: SegmenterConfig = SegmenterConfig()
    clip: str | None = None  # model folder of the CLIP to start from
    sam: str | None = None  # model folder of the SAM to start from
    sam_cache: str | None = None  # folder of 'sammi cache': SAM's encoder does not run
    segmenter: str | None = None  # model folder of a CAT-Seg or SAM-MI to start from
    clip_lr_scale: float = 0.01  # CLIP's query and value kernels; all else of it is frozen
    dmi_lr_scale: float = 10.0  # [ours] the injection's layers start at zero: they learn faster
    # Pixels with the ignore label count as "no class" in the loss (the reference); else not at all.
    ignored_as_negative: bool = True
    # What the backward pass recomputes (config.model.Remat): "full" saves the most memory, for
    # about a third more work; "elementwise" costs almost no matrix products.
    remat: Remat = "none"
    # Classes that a step (with ``accumulate``, each of its parts) asks for: those present first,
    # then others, at random; None: all.
    num_classes: int | None = None
    mask_noise: MaskNoiseConfig | None = None  # [ours] on SAM's masks; None: none


@dataclass(frozen=True)
class EvalConfig:
    """How `eval.py` runs.

    Raises:
        SammiError: ``keep_classes`` below 1.
    """

    batch_size: int = 8  # images a step over all devices; a multiple of their number
    # What the model's products compute in (a training's is `TrainConfig.compute_dtype`).
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    num_examples: int | None = None  # the first ones only; None: all
    # Test-time augmentation: scores of the mirrored image, and of other canvases, are averaged in.
    flip: bool = False
    scales: tuple[int, ...] = ()  # sides of the canvas, as sliding.output_size; (): only that
    # Of a data set with a background class. "name": its text competes with the others; "threshold":
    # it has no text and takes the pixels where every score is below ``background_threshold``;
    # "none": it has no text, and its pixels are ignored.
    background: Literal["name", "threshold", "none"] = "name"
    background_threshold: float = 0.5
    # Which masks a SAM-MI uses: its own; none (all are disabled); or, of a data set that knows
    # regions, the true instances or their parts.
    masks: Literal["own", "none", "true", "parts"] = "own"
    mask_iou: float | None = None  # given masks are degraded to this IoU; None: they are exact
    boundary: bool = False  # boundary IoU as well
    # Decode only so many classes of each image, those of largest cosine anywhere in its cost map;
    # the others get no pixel. None: all, or as many as the model keeps (aggregator.pad_length).
    keep_classes: int | None = None
    # The next two change memory, speed and the number of compilations, and no result.
    class_chunk: int = 32  # classes whose score maps are in memory at once
    max_buckets: int = 8  # shapes of label maps, hence compilations of the read-out
    save_labels: bool = False  # predicted label maps, as PNG
    panels: int = 0  # figures of this many images: image, truth, prediction, masks and points
    save_every: int = 50  # steps between two saves of the partial result

    def __post_init__(self):
        if self.keep_classes is not None and self.keep_classes < 1:
            raise SammiError(f"eval.keep_classes={self.keep_classes}: give at least 1, or None")


@dataclass(frozen=True)
class TrainConfig:
    """One experiment."""

    task: TaskConfig
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    # What the models' products compute in. Parameters, optimizer, softmax, norms' statistics,
    # cosines and losses are float32 always.
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    steps: int = 80_000
    batch_size: int = 4  # over all devices
    # Equal parts of a batch that a step processes one after the other, for memory. What a loss
    # averages over is then a part: where weights differ from image to image (TSPP's loss with
    # ignored pixels), or a loss compares images (CLIP's captions), that is not quite the same.
    accumulate: int = 1
    seed: int = 0  # of initial weights, order and sampling
    log_every: int = 10
    checkpoint_every: int = 5000
    keep: int = 2  # latest checkpoints; the one with the best validation is kept besides
    # Data sets, named as for eval.py, on which the model is evaluated every ``validate_every``
    # steps (a multiple of checkpoint_every) and at the end, in the way that ``eval`` describes.
    validation: tuple[str, ...] = ()
    validate_every: int = 5000
    # [ours] A loss above this many times the median of the 100 before it ends the run; None: none.
    max_loss_ratio: float | None = 100.0
    tensorboard: bool = False  # event files in the work folder; needs sammi_jax[tensorboard]
    # First and last step of a profile, written to the work folder's ``profile``.
    profile_steps: tuple[int, ...] | None = None
