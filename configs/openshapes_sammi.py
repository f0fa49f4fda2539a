r"""The demo's SAM-MI: continues from its CAT-Seg, with the tiny SAM's masks.

Command:   sammi train --config openshapes_sammi --workdir runs/demo/sammi \
               --set task.segmenter=runs/demo/catseg/model --set task.sam=runs/demo/sam/model
Hardware:  two CPU cores
"""

from dataclasses import replace

from sammi_jax.config import (
    SAM_SIZES,
    SEGMENTER_SIZES,
    DmiConfig,
    MaskConfig,
    MaskFilterConfig,
    MaskNoiseConfig,
    OptimConfig,
    SegmentConfig,
    SmaggConfig,
    TrainConfig,
    TsppConfig,
)

# The tiny SAM's logits are small, so that shifting them says nothing of a mask's stability: only
# its own estimate of the IoU counts. The tiny CLIP's cosines spread more than the real one's. The
# suppression reaches over half of the map, so that it is by likeness of class.
MASKS = MaskConfig(
    sam=SAM_SIZES["openshapes"],
    tspp=TsppConfig(num_points=24, scale=30.0, min_score=0.06, sigma=6.0),
    filter=MaskFilterConfig(min_iou=0.35, min_stability=0.0),
    smagg=SmaggConfig(min_feature_similarity=0.97, min_class_similarity=0.97),
    dmi=DmiConfig(num_heads=4),
)

config = TrainConfig(
    # With the noise, masks that are known to be poor do no harm (docs/study.md).
    task=SegmentConfig(
        model=replace(SEGMENTER_SIZES["openshapes"], masks=MASKS),
        clip_lr_scale=1.0,
        mask_noise=MaskNoiseConfig(drop=0.2, dilate=0.15, erode=0.15, shift=0.15),
    ),
    optim=OptimConfig(
        peak_lr=3e-4, warmup_steps=20, weight_decay=0.01, b2=0.98, clip_norm=1.0, muon_ratio=10.0
    ),
    steps=60,
    batch_size=4,
    checkpoint_every=30,
)
