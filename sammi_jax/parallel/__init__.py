"""Devices as a mesh, batches on them, and jobs of several processes."""
