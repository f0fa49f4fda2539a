r"""The demo's CAT-Seg on its tiny CLIP, from label maps of the seen classes.

Command:   python train.py --config configs/openshapes_catseg.py --workdir runs/demo/catseg \
               --set task.clip=runs/demo/clip/model
Hardware:  two CPU cores
"""

from sammi_jax.config import SEGMENTER_SIZES
from sammi_jax.experiment import OptimConfig, SegmentConfig, TrainConfig

config = TrainConfig(
    task=SegmentConfig(model=SEGMENTER_SIZES["openshapes"], num_classes=12),
    optim=OptimConfig(
        peak_lr=2e-3, warmup_steps=20, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=280,
    batch_size=4,
    checkpoint_every=140,
)
