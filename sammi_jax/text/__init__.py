"""Class names and their tokens."""
