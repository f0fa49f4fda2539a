"""The demo's tiny SAM: a point gives the whole object, its part and its subpart.

Command:  python train.py --config configs/openshapes_sam.py --workdir runs/demo/sam
"""

from sammi_jax.config import SamConfig
from sammi_jax.experiment import OptimConfig, PromptConfig, TrainConfig

SAM = SamConfig(
    image_size=96,
    patch_size=8,
    width=64,
    num_layers=3,
    num_heads=4,
    num_stages=3,
    mlp_ratio=4,
    window_size=6,
    out_channels=64,
    decoder_layers=2,
    decoder_heads=4,
    decoder_mlp_dim=128,
    iou_head_hidden_dim=64,
    mask_in_channels=4,
)

config = TrainConfig(
    task=PromptConfig(model=SAM, points_per_image=8),
    optim=OptimConfig(peak_lr=1e-3, warmup_steps=50, weight_decay=0.01, b2=0.98, clip_norm=1.0),
    steps=500,
    batch_size=16,
    log_every=10,
    checkpoint_every=250,
)
