"""The tiny CLIP that the package ships, from captions of single-object images.

Command:   sammi train --config openshapes_clip --workdir runs/pretrain/clip
Hardware:  two CPU cores
"""

from sammi_jax.config import CLIP_SIZES, CaptionConfig, OptimConfig, TrainConfig

config = TrainConfig(
    task=CaptionConfig(model=CLIP_SIZES["openshapes"]),
    optim=OptimConfig(
        peak_lr=2e-3, warmup_steps=50, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=2500,
    batch_size=64,
    checkpoint_every=250,
)
