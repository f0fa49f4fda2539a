"""Train: ``python train.py ...`` is ``sammi train ...`` (docs/training.md)."""

import sys

from sammi_jax.cli.main import console

if __name__ == "__main__":
    console(["train", *sys.argv[1:]])
