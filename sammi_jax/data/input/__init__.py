"""Batches for training: order, augmentation, prefetching."""
