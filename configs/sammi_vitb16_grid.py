r"""Ablation of configs/sammi_vitb16.py: a grid of 8 x 8 points in the place of TSPP's.

Command:   sammi train --config sammi_vitb16_grid --workdir runs/grid \
               --set task.segmenter=weights/catseg_b --set task.sam=weights/sam_vitb \
               --set data.data_dir=data
           SAM's own grid: --set task.model.masks.grid_points=32 (1024 points, 16 times the masks)
Hardware:  as configs/sammi_vitb16.py; not run at this size by its authors
"""

from pathlib import Path

from sammi_jax.config.files import load_config

config = load_config(Path(__file__).with_name("sammi_vitb16.py"), ["task.model.masks.tspp=None"])
