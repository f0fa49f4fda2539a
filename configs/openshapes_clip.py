"""The demo's tiny CLIP, from captions of single-object images.

Command:  python train.py --config configs/openshapes_clip.py --workdir runs/demo/clip
"""

from sammi_jax.config import ClipConfig, ClipTextConfig, ClipVisionConfig
from sammi_jax.experiment import CaptionConfig, OptimConfig, TrainConfig

CLIP = ClipConfig(
    vision=ClipVisionConfig(image_size=48, patch_size=8, width=96, num_layers=3, num_heads=4),
    text=ClipTextConfig(vocab_size=30, context_length=12, width=96, num_layers=2, num_heads=4),
    embed_dim=96,
)

config = TrainConfig(
    task=CaptionConfig(model=CLIP),
    optim=OptimConfig(peak_lr=2e-3, warmup_steps=50, weight_decay=0.01, b2=0.98, clip_norm=1.0),
    steps=800,
    batch_size=64,
    log_every=10,
    checkpoint_every=400,
)
