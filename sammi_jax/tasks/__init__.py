"""The tasks that `sammi_jax.loop` trains."""
