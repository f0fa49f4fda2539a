r"""SAM-MI, ViT-B/16 and SAM ViT-B, on COCO-Stuff-171, from a converted CAT-Seg.

Command:   sammi train --config sammi_vitb16 --workdir runs/sammi_b \
               --set task.segmenter=weights/catseg_b --set task.sam=weights/sam_vitb \
               --set data.data_dir=data
Data:      sammi datasets prepare coco_stuff_171 --source coco --data-dir data
Hardware:  written for one TPU pod slice or GPU node; not run at this size by its authors;
           batch_size=4 is the reference's, and must be a multiple of the devices
"""

from dataclasses import replace

from sammi_jax.config import SEGMENTER_SIZES, DataConfig, MaskConfig, SegmentConfig, TrainConfig

config = TrainConfig(
    task=SegmentConfig(model=replace(SEGMENTER_SIZES["vitb16"], masks=MaskConfig()), remat="full"),
    data=DataConfig(name="coco_stuff_171/train2017", workers=8),
    compute_dtype="bfloat16",
)
