"""Segment Anything."""
