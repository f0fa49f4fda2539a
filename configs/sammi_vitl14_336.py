r"""SAM-MI, ViT-L/14@336 and SAM ViT-H, on COCO-Stuff-171, from a converted CAT-Seg.

Command:   sammi train --config sammi_vitl14_336 --workdir runs/sammi_l \
               --set task.segmenter=weights/catseg_l --set task.sam=weights/sam_vith \
               --set data.data_dir=data
Data:      sammi datasets prepare coco_stuff_171 --source coco --data-dir data
Hardware:  written for one TPU pod slice or GPU node; not run at this size by its authors;
           batch_size=4 is the reference's, and must be a multiple of the devices
"""

from dataclasses import replace

from sammi_jax.config import (
    SAM_SIZES,
    SEGMENTER_SIZES,
    DataConfig,
    MaskConfig,
    SegmentConfig,
    TrainConfig,
)

MASKS = MaskConfig(sam=SAM_SIZES["vith"])

config = TrainConfig(
    task=SegmentConfig(model=replace(SEGMENTER_SIZES["vitl14_336"], masks=MASKS), remat="full"),
    data=DataConfig(name="coco_stuff_171/train2017", workers=8),
    compute_dtype="bfloat16",
)
