"""Loaded models: from images and class names to label maps."""
