"""The demo's tiny SAM: a point gives the whole object, its part and its subpart.

Command:   sammi train --config openshapes_sam --workdir runs/demo/sam
Hardware:  two CPU cores
"""

from sammi_jax.config import SAM_SIZES, OptimConfig, PromptConfig, TrainConfig

config = TrainConfig(
    task=PromptConfig(model=SAM_SIZES["openshapes"], points_per_image=8, focal_weight=1.0),
    optim=OptimConfig(
        peak_lr=2e-3, warmup_steps=30, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=250,
    batch_size=8,
    checkpoint_every=125,
)
