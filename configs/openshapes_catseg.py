r"""The demo's CAT-Seg on its tiny CLIP, from label maps of the seen classes.

Command:   sammi train --config openshapes_catseg --workdir runs/demo/catseg \
               --set task.clip=runs/demo/clip/model
Hardware:  two CPU cores
"""

from sammi_jax.config import SEGMENTER_SIZES, OptimConfig, SegmentConfig, TrainConfig

config = TrainConfig(
    # The tiny CLIP learned from 48-pixel images of one object. On scenes it has more to learn than
    # the real one, so its queries and values train at the full rate.
    task=SegmentConfig(model=SEGMENTER_SIZES["openshapes"], clip_lr_scale=1.0),
    optim=OptimConfig(
        peak_lr=2e-3, warmup_steps=20, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=160,
    batch_size=4,
    checkpoint_every=80,
)
