"""``python -m sammi_jax`` is the ``sammi`` command."""

import sys

from sammi_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
