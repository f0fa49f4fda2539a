"""Every reader under test, by its name."""

from tests.fuzz import checkpoints, images, page, records, requests, texts

_PARTS = (checkpoints, images, texts, records, requests, page)
TARGETS = {target.name: target for part in _PARTS for target in part.TARGETS}
