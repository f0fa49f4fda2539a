"""Parameters by path, kinds of model, and model folders."""
