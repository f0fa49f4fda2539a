"""Pallas kernels for TPUs, each with the same result as a plain form elsewhere in the package."""
