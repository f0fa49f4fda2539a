"""Point prompts and the three masks that each of them can mean: targets for a tiny SAM."""

import numpy as np

from sammi_jax.data.openshapes.banks import OUTLINE, TEXTURED
from sammi_jax.data.openshapes.bits import between, raw_words
from sammi_jax.data.openshapes.drawing import Scene
from sammi_jax.typing import Bool, Int, NpArray


def point_targets(
    scene: Scene, count: int, *, index: int, seed: int = 0
) -> tuple[Int[NpArray, "k 2"], Bool[NpArray, "k 3 h w"]]:
    """``count`` points, and for each the whole, the part and the subpart that it lies in.

    A point falls on every visible instance with equal probability, then on every pixel of it whose
    part has at least 6 pixels. The masks are nested: *whole* is the visible instance; *part* an
    object's outline or one of its halves with the texture on it; *subpart* one connected element of
    texture or ground. Stuff has no halves: its part and subpart are both the connected element
    (a brick, the mortar). The points follow from (seed, index) alone.

    Returns:
        points: int32 (x, y) in pixels.
        targets: whole, part, subpart.
    """
    parts = scene.parts
    pixels = np.flatnonzero(parts)
    owner = scene.instances.ravel()[pixels]
    pixels = pixels[np.argsort(owner, kind="stable")]
    sizes = np.bincount(owner)
    starts, sizes = (np.cumsum(sizes) - sizes)[sizes > 0], sizes[sizes > 0]

    chosen = []
    words = raw_words(seed, "points", index, 2 * count).tolist()
    for instance_word, pixel_word in zip(words[::2], words[1::2], strict=True):
        i = between(instance_word, 0, len(sizes) - 1)
        chosen.append(pixels[starts[i] + between(pixel_word, 0, int(sizes[i]) - 1)])
    y, x = np.divmod(np.array(chosen, np.int32), np.int32(scene.instances.shape[1]))

    def equal(values: NpArray) -> NpArray:
        return values[None] == values[y, x][:, None, None]

    whole, subpart = equal(scene.instances), equal(parts)
    half = scene.codes & (TEXTURED - 1)
    is_thing = (half[y, x] >= OUTLINE)[:, None, None]
    part = np.where(is_thing, whole & equal(half), subpart)
    return np.stack([x, y], -1), np.stack([whole, part, subpart], 1)
