"""Every reader under test, by its name."""

from tests.fuzz import checkpoints

TARGETS = {target.name: target for part in (checkpoints,) for target in part.TARGETS}
