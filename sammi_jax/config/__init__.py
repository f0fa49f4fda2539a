"""Configuration: the models' sizes and options, and experiments.

Configuration files import from here; modules of this package import from the submodules.
"""

from sammi_jax.config.experiment import (
    OPENSHAPES,
    CaptionConfig,
    DataConfig,
    EvalConfig,
    MaskNoiseConfig,
    MeshConfig,
    OptimConfig,
    PromptConfig,
    SegmentConfig,
    TaskConfig,
    TrainConfig,
)
from sammi_jax.config.fields import from_dict, override, to_dict
from sammi_jax.config.files import load_config, read_run_config, save_config
from sammi_jax.config.model import (
    CLIP_SIZES,
    SAM_SIZES,
    SEGMENTER_SIZES,
    AggregatorConfig,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    DmiConfig,
    MaskConfig,
    MaskFilterConfig,
    SamConfig,
    SegmenterConfig,
    SlidingConfig,
    SmaggConfig,
    TsppConfig,
)

__all__ = [
    "CLIP_SIZES",
    "OPENSHAPES",
    "SAM_SIZES",
    "SEGMENTER_SIZES",
    "AggregatorConfig",
    "CaptionConfig",
    "ClipConfig",
    "ClipTextConfig",
    "ClipVisionConfig",
    "DataConfig",
    "DmiConfig",
    "EvalConfig",
    "MaskConfig",
    "MaskFilterConfig",
    "MaskNoiseConfig",
    "MeshConfig",
    "OptimConfig",
    "PromptConfig",
    "SamConfig",
    "SegmentConfig",
    "SegmenterConfig",
    "SlidingConfig",
    "SmaggConfig",
    "TaskConfig",
    "TrainConfig",
    "TsppConfig",
    "from_dict",
    "load_config",
    "override",
    "read_run_config",
    "save_config",
    "to_dict",
]
