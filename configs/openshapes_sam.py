"""The tiny SAM that the package ships: a point gives the whole object, its part and its subpart.

Command:   sammi train --config openshapes_sam --workdir runs/pretrain/sam
Hardware:  one CPU core
"""

from sammi_jax.config import SAM_SIZES, OptimConfig, PromptConfig, TrainConfig

config = TrainConfig(
    # The whole object is what SAM-MI asks for most.
    task=PromptConfig(
        model=SAM_SIZES["openshapes"],
        points_per_image=4,
        output_weights=(4.0, 1.0, 1.0),
        focal_weight=1.0,
    ),
    optim=OptimConfig(
        peak_lr=2e-3, warmup_steps=100, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=9000,
    batch_size=8,
    checkpoint_every=500,
)
