"""Devices as a mesh, batches on it, and jobs of several processes."""
