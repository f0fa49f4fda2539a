"""Train: ``python train.py ...`` is ``sammi train ...`` (docs/training.md)."""

import sys

from sammi_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
