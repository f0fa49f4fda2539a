"""Preparing data sets from their owners' files, and examining them."""
