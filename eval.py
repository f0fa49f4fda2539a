"""Evaluate: ``python eval.py ...`` is ``sammi eval ...`` (docs/evaluation.md)."""

import sys

from sammi_jax.cli.main import console

if __name__ == "__main__":
    console(["eval", *sys.argv[1:]])
