r"""CAT-Seg, ViT-B/16, on COCO-Stuff-171: the reference's own training (docs/catseg.md part e).

Command:   sammi train --config catseg_vitb16 --workdir runs/catseg_b \
               --set task.clip=weights/clip_vitb16 --set data.data_dir=data
Data:      sammi datasets prepare coco_stuff_171 --source coco --data-dir data
Hardware:  written for one TPU pod slice or GPU node; not run at this size by its authors;
           batch_size=4 is the reference's, and must be a multiple of the devices
"""

from sammi_jax.config import SEGMENTER_SIZES, DataConfig, SegmentConfig, TrainConfig

config = TrainConfig(
    task=SegmentConfig(model=SEGMENTER_SIZES["vitb16"], remat="full"),
    data=DataConfig(name="coco_stuff_171/train2017", workers=8),
    compute_dtype="bfloat16",
)
