"""The training step compiled ahead of time for TPU pods."""
