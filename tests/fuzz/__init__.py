"""Hostile input: how it is made, what must hold for it, and every reader that it is given to."""
