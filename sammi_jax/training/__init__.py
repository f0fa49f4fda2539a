"""The training loop, its tasks, and everything that a run writes."""
