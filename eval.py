"""Evaluate: ``python eval.py ...`` is ``sammi eval ...`` (docs/evaluation.md)."""

import sys

from sammi_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
