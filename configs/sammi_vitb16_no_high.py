r"""Ablation of configs/sammi_vitb16.py: no high frequencies for the decoder.

Command:   sammi train --config sammi_vitb16_no_high --workdir runs/no_high \
               --set task.segmenter=weights/catseg_b --set task.sam=weights/sam_vitb \
               --set data.data_dir=data
Hardware:  as configs/sammi_vitb16.py; not run at this size by its authors
"""

from pathlib import Path

from sammi_jax.config.files import load_config

config = load_config(
    Path(__file__).with_name("sammi_vitb16.py"), ["task.model.masks.dmi.high=False"]
)
