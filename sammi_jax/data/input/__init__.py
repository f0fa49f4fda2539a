"""Batches for training: order, augmentation, reading ahead."""
