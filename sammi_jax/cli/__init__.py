"""The ``sammi`` command line."""
