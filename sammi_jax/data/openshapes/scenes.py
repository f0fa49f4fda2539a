"""Scenes by index: which objects and stuff they hold, and where."""

from sammi_jax.data.openshapes.banks import STUFF_SIDE, TEXTURE_PERIOD
from sammi_jax.data.openshapes.bits import between, chance, raw_words
from sammi_jax.data.openshapes.drawing import UNIT, Scene, Stuff, Thing, render
from sammi_jax.data.openshapes.vocabulary import (
    SEEN_PAIRS,
    SEEN_STUFF,
    SHAPES,
    UNSEEN_PAIRS,
    UNSEEN_STUFF,
)
from sammi_jax.errors import SammiError

SPLITS = ("train", "val_seen", "val_unseen", "test_seen", "test_unseen")
SCENE_SIZE = 96
MAX_OBJECTS = 6

LAYOUT_WORDS = 128  # 32 for the ground, then 16 an object; the pixels' noise follows
_GROUND_WORDS, _OBJECT_WORDS = 32, 16
_MAX_TILT = 58  # 0.45 rad (drawing.Thing)

# in the order of vocabulary.COLORS
_PALETTE = (
    (214, 40, 40),
    (46, 160, 67),
    (45, 85, 215),
    (238, 208, 40),
    (140, 60, 185),
    (240, 130, 35),
)


def scene(split: str, index: int, *, seed: int = 0, size: int = SCENE_SIZE) -> Scene:
    """The scene of that index: the same pixels on every machine and in any order.

    ``train``, ``val_seen`` and ``test_seen`` show seen classes only. In ``val_unseen`` and
    ``test_unseen`` an object is of an unseen class with probability 0.5 and a stuff region with
    0.3. Another ``size`` (pixels a side) is another canvas: objects keep their size in pixels.

    Raises:
        SammiError: an unknown split, a size outside 1..240, or a seed or index that is no natural
            number below 2^64.
    """
    if split not in SPLITS:
        raise SammiError(f"openshapes: no split {split!r}; there are {', '.join(SPLITS)}")
    if not 1 <= size <= STUFF_SIDE:
        raise SammiError(f"openshapes: size {size} is not in 1 .. {STUFF_SIDE}")
    words = raw_words(seed, split, index, LAYOUT_WORDS + (size * size * 3 + 7) // 8)
    ground, things = _layout(words[:LAYOUT_WORDS].tolist(), split.endswith("_unseen"), size)
    return render(ground, things, words[:4].tolist(), words[LAYOUT_WORDS:], size)


def _layout(words: list[int], unseen: bool, size: int) -> tuple[list[Stuff], list[Thing]]:
    """What the scene holds. Words 0..3 are the border between two stuff regions."""
    kinds = []
    for i in range(1 + chance(words[4], 50)):
        from_unseen = unseen and chance(words[8 + 8 * i], 30)
        pool = UNSEEN_STUFF if from_unseen else SEEN_STUFF
        choice = between(words[9 + 8 * i], 0, len(pool) - 1)
        if pool[choice] in kinds:  # two regions of one class would have no border
            choice = (choice + 1) % len(pool)
        kinds.append(pool[choice])
    ground = [make_stuff(kind, words[10 + 8 * i : 16 + 8 * i]) for i, kind in enumerate(kinds)]
    things = []
    for i in range(between(words[5], 3, MAX_OBJECTS)):
        own = words[_GROUND_WORDS + _OBJECT_WORDS * i :][:_OBJECT_WORDS]
        pool = UNSEEN_PAIRS if unseen and chance(own[0], 50) else SEEN_PAIRS
        pair = pool[between(own[1], 0, len(pool) - 1)]
        radius = between(own[2], 11 * UNIT, 23 * UNIT)
        span = (size * UNIT * 8 // 100, size * UNIT * 92 // 100)
        things.append(make_thing(pair, radius, span, own[3:]))
    return ground, things


def _vary(color: int, amount: int, jitter: int) -> tuple[int, ...]:
    """The color x 0.82..1.1, then +-14 a channel, from two words."""
    scale = between(amount, 210, 282)
    shifts = (((jitter >> 16 * i & 0xFFFF) * 29 >> 16) - 14 for i in range(3))
    return tuple(
        min(255, max(0, (channel * scale >> 8) + shift))
        for channel, shift in zip(_PALETTE[color], shifts, strict=True)
    )


def make_stuff(kind: tuple[int, int], words: list[int]) -> Stuff:
    """A region of (pattern, color), its appearance drawn from four words; 45 % less saturated."""
    pattern, color = kind
    vivid = _vary(color, words[0], words[1])
    base = tuple((channel * 55 + sum(vivid) * 15) // 100 for channel in vivid)
    offset = between(words[2], 0, STUFF_SIDE - 1), between(words[3], 0, STUFF_SIDE - 1)
    return Stuff(pattern, color, base, offset)


def make_thing(
    pair: tuple[int, int], radius: int, span: tuple[int, int], words: list[int]
) -> Thing:
    """An object of (texture, color), its center within ``span``, the rest drawn from nine words."""
    return Thing(
        texture=pair[0],
        color=pair[1],
        shape=between(words[0], 0, len(SHAPES) - 1),
        x=between(words[1], *span),
        y=between(words[2], *span),
        radius=radius,
        tilt=between(words[3], -_MAX_TILT, _MAX_TILT),
        phase=(
            between(words[4], 0, TEXTURE_PERIOD - 1),
            between(words[5], 0, TEXTURE_PERIOD - 1),
        ),
        base=_vary(pair[1], words[6], words[7]),
        whitened=between(words[8], 0, 1),
    )
