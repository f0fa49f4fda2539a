"""``python -m sammi_jax`` is the ``sammi`` command."""

from sammi_jax.cli.main import console

if __name__ == "__main__":
    console()
