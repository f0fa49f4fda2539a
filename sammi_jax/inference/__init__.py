"""Loaded models: images and class names in, label maps out."""
