"""CAT-Seg alone on the demo's tiny CLIP, seen classes only.

Command:  python train.py --config configs/openshapes_catseg.py --workdir runs/demo/catseg \
              --set task.clip=runs/demo/clip/model
"""

from sammi_jax.config import (
    AggregatorConfig,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
    SegmenterConfig,
)
from sammi_jax.experiment import OptimConfig, SegmentConfig, TrainConfig

CLIP = ClipConfig(
    vision=ClipVisionConfig(image_size=48, patch_size=8, width=96, num_layers=3, num_heads=4),
    text=ClipTextConfig(vocab_size=30, context_length=12, width=96, num_layers=2, num_heads=4),
    embed_dim=96,
)

MODEL = SegmenterConfig(
    clip=CLIP,
    aggregator=AggregatorConfig(
        hidden_dim=32,
        num_layers=2,
        num_heads=4,
        window_size=6,
        grid_size=12,
        pooling_size=1,
        appearance_dim=32,
        text_dim=32,
        decoder_dims=(32, 16),
        decoder_guidance_dims=(32, 16),
        decoder_guidance_proj_dims=(16, 16),
        pad_length=0,
        cost_skip=True,
    ),
    crop_size=96,
    clip_size=96,
    taps=(0, 1),
    sliding=None,
)

config = TrainConfig(
    task=SegmentConfig(model=MODEL, num_classes=12),
    optim=OptimConfig(peak_lr=2e-3, warmup_steps=20, weight_decay=1e-4, clip_norm=1.0),
    steps=250,
    batch_size=8,
    log_every=10,
    checkpoint_every=125,
)
