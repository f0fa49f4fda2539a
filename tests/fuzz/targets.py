"""Every reader under test, by its name."""

from tests.fuzz import checkpoints, images, requests, texts

_PARTS = (checkpoints, images, texts, requests)
TARGETS = {target.name: target for part in _PARTS for target in part.TARGETS}
