"""Scenes by index: what is drawn, and the drawing, in fixed-point integers."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sammi_jax.data.openshapes.banks import (
    NUM_TONES,
    OUTLINE,
    SHAPE_RADIUS,
    SHAPE_REACH,
    SHAPE_SIDE,
    STUFF_SIDE,
    TEXTURE_PERIOD,
    TEXTURE_SIDE,
    TEXTURED,
    banks,
    wave,
)
from sammi_jax.data.openshapes.bits import between, bytes_of, chance, raw_words
from sammi_jax.data.openshapes.parts import connected_parts
from sammi_jax.data.openshapes.vocabulary import (
    SEEN_PAIRS,
    SEEN_STUFF,
    SHAPES,
    UNSEEN_PAIRS,
    UNSEEN_STUFF,
    object_class,
    stuff_class,
)
from sammi_jax.errors import SammiError
from sammi_jax.typing import Int, NpArray, UInt8

SPLITS = ("train", "val_seen", "val_unseen")
SCENE_SIZE = 96
MAX_OBJECTS = 6

LAYOUT_WORDS = 128  # 32 for the ground, then 16 an object; the pixels' noise follows
_GROUND_WORDS, _OBJECT_WORDS = 32, 16

_UNIT = 16  # positions and radii are in 1/16 pixel
_TURN = 256  # tilt = 2 atan(k / 256), so that its sine and cosine are rational
_MAX_TILT = 58  # 0.45 rad
_ONE = 1 << 14  # 1.0 of sines and cosines

_PALETTE = np.array(  # in the order of vocabulary.COLOURS
    [(214, 40, 40), (46, 160, 67), (45, 85, 215), (238, 208, 40), (140, 60, 185), (240, 130, 35)]
)
# Colour by code: base * _SHADE / 256 + _WHITE. Texture elements are dark, or else whitened.
_SHADE = np.array([[0, 72, 256, 196, 0, 72, 108, 82], [0, 72, 256, 196, 0, 72, 96, 80]])
_WHITE = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 156, 126]])
# The outline has no texture: shape code + TEXTURED -> code.
_FUSE = np.array([0, 1, 2, 3, 0, OUTLINE, 6, 7], np.uint8)
# Triangular noise of sigma 6.5 in -15..15: the sum of a byte's two halves.
_NOISE = np.array([(b & 15) + (b >> 4) - 15 for b in range(256)], np.int16)


class Stuff(NamedTuple):
    """A stuff region's kind and looks."""

    pattern: int
    colour: int
    base: NpArray  # [3], the colour of this region
    offset: tuple[int, int]  # (y, x) of the window in the stuff map


class Thing(NamedTuple):
    """An object's kind and looks. Lengths in 1/16 pixel."""

    texture: int
    colour: int
    shape: int
    x: int
    y: int
    radius: int
    tilt: int  # angle = 2 atan(tilt / 256)
    phase: tuple[int, int]  # of the texture, in pixels
    base: NpArray  # [3]
    whitened: int  # texture elements are 0 dark, 1 whitened


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    ``classes`` holds the ids of vocabulary.py; ``instances`` numbers stuff regions from 0, then
    objects in painter's order (hidden ones have no pixel); ``codes`` tells the pieces of an instance
    apart (banks.py: OUTLINE, HALF_A, HALF_B, TEXTURED, STUFF_*).
    """

    image: UInt8[NpArray, "h w 3"]
    classes: Int[NpArray, "h w"]
    instances: Int[NpArray, "h w"]
    codes: UInt8[NpArray, "h w"]

    @cached_property
    def parts(self) -> Int[NpArray, "h w"]:
        """Connected pieces (int32, from 1, in raster order); pieces below 6 pixels are 0."""
        return connected_parts(self.instances.astype(np.int32) * 8 + self.codes)


def scene(split: str, index: int, *, seed: int = 0, size: int = SCENE_SIZE) -> Scene:
    """The scene of that index: the same pixels on every machine and in any order.

    ``train`` and ``val_seen`` show seen classes only. In ``val_unseen`` an object is of an unseen
    class with probability 0.5 and a stuff region with 0.3. Another ``size`` (pixels a side) is
    another canvas: lengths in pixels stay.

    Raises:
        SammiError: an unknown split, a size outside 1..240, or a seed or index that is no natural
            number below 2^64.
    """
    if split not in SPLITS:
        raise SammiError(f"openshapes: no split {split!r}; there are {', '.join(SPLITS)}")
    if not 1 <= size <= STUFF_SIDE:
        raise SammiError(f"openshapes: size {size} is not in 1 .. {STUFF_SIDE}")
    words = raw_words(seed, split, index, LAYOUT_WORDS + (size * size * 3 + 7) // 8)
    ground, things = _layout(words[:LAYOUT_WORDS].tolist(), split == "val_unseen", size)
    split_words = words[:4].tolist()
    return render(ground, things, split_words, words[LAYOUT_WORDS:], size)


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
        radius = between(own[2], 11 * _UNIT, 23 * _UNIT)
        span = (size * _UNIT * 8 // 100, size * _UNIT * 92 // 100)
        things.append(make_thing(pair, radius, span, own[3:]))
    return ground, things


def _vary(colour: int, amount: int, jitter: int) -> NpArray:
    """The colour x 0.82..1.1, then +-14 a channel."""
    scaled = _PALETTE[colour] * between(amount, 210, 282) // 256
    channels = np.array([((jitter >> 16 * i & 0xFFFF) * 29 >> 16) - 14 for i in range(3)])
    return np.clip(scaled + channels, 0, 255)


def make_stuff(kind: tuple[int, int], words: list[int]) -> Stuff:
    """A region of (pattern, colour) with looks from four words; 45 % less saturated."""
    pattern, colour = kind
    base = _vary(colour, words[0], words[1])
    base = (base * 55 + int(base.sum()) * 15) // 100
    offset = between(words[2], 0, STUFF_SIDE - 1), between(words[3], 0, STUFF_SIDE - 1)
    return Stuff(pattern, colour, base, offset)


def make_thing(
    pair: tuple[int, int], radius: int, span: tuple[int, int], words: list[int]
) -> Thing:
    """An object of (texture, colour), its centre within ``span``, its looks from nine words."""
    return Thing(
        texture=pair[0],
        colour=pair[1],
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


def render(
    ground: list[Stuff],
    things: list[Thing],
    split_words: list[int],
    noise: Int[NpArray, " n"],
    size: int,
) -> Scene:
    """Draw the ground, then the objects in order, then noise over all."""
    image = np.empty((size, size, 3), np.uint8)
    classes = np.empty((size, size), np.int16)
    instances = np.zeros((size, size), np.int16)
    codes = np.empty((size, size), np.uint8)
    if len(ground) == 2:
        instances += _beyond_border(split_words, size)
    for i, stuff in enumerate(ground):
        where = instances == i
        window = tuple(slice(o, o + size) for o in stuff.offset)
        tones = np.arange(NUM_TONES)[:, None] * 9 + 121  # 0.47 to 1 in 1/256
        lut = (stuff.base * tones // 256).astype(np.uint8)
        np.copyto(image, lut[banks().tones[stuff.pattern][window]], where=where[..., None])
        np.copyto(codes, banks().elements[stuff.pattern][window], where=where)
        classes[where] = stuff_class(stuff.pattern, stuff.colour)
    for i, thing in enumerate(things):
        _draw(thing, len(ground) + i, image, classes, instances, codes)
    grain = _NOISE[bytes_of(noise)[: image.size]].reshape(image.shape)
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    return Scene(image, classes, instances, codes)


def _beyond_border(words: list[int], size: int) -> NpArray:
    """True below (or right of) a tilted wavy line through the middle third."""
    along = np.arange(size)
    tilt = between(words[0], -120, 120)  # slope in 1/256
    middle = between(words[1], size // 3, size - size // 3)
    border = middle + (tilt * (along - size // 2) >> 8)
    border = border + wave(along + between(words[2], 0, 63), 32, 3)
    upright = between(words[3], 0, 1)
    beyond = along[:, None] > border[None, :]
    return beyond.T if upright else beyond


def _draw(
    thing: Thing, instance: int, image: NpArray, classes: NpArray, instances: NpArray, codes: NpArray
) -> None:
    """One rotated gather of codes and one colour table, within the object's box."""
    size = image.shape[0]
    reach = thing.radius * SHAPE_REACH // SHAPE_RADIUS
    rows, columns = (
        slice(max(0, (c - reach) // _UNIT), min(size, (c + reach) // _UNIT + 1))
        for c in (thing.y, thing.x)
    )
    dy, dx = (
        (np.arange(s.start, s.stop) * _UNIT + _UNIT // 2 - c)
        for s, c in ((rows, thing.y), (columns, thing.x))
    )
    square = _TURN**2 + thing.tilt**2
    cos = (_TURN**2 - thing.tilt**2) * _ONE // square
    sin = 2 * _TURN * thing.tilt * _ONE // square
    # turned coordinates in 1/16 pixel x 2^14
    u = cos * dx[None, :] + sin * dy[:, None]
    v = cos * dy[:, None] - sin * dx[None, :]
    pixel, centre = 18, TEXTURE_SIDE // 2
    texel = ((v >> pixel) + (centre + thing.phase[0])) * TEXTURE_SIDE
    texel += (u >> pixel) + (centre + thing.phase[1])
    texture = banks().textures[thing.texture].take(texel)
    # canonical coordinates: nominal radius -> SHAPE_RADIUS
    factor = (SHAPE_RADIUS << 14) // thing.radius
    where = ((v * factor >> 28) + SHAPE_SIDE // 2) * SHAPE_SIDE
    where += (u * factor >> 28) + SHAPE_SIDE // 2
    code = _FUSE[banks().shapes[thing.shape].take(where) + TEXTURED * texture]
    inside = code > 0

    lut = thing.base * _SHADE[thing.whitened][:, None] // 256 + _WHITE[thing.whitened][:, None]
    lut = np.minimum(lut, 255).astype(np.uint8)
    box = rows, columns
    np.copyto(image[box], lut[code], where=inside[..., None])
    np.copyto(codes[box], code, where=inside)
    np.copyto(instances[box], np.int16(instance), where=inside)
    kind = object_class(thing.texture, thing.colour, thing.shape)
    np.copyto(classes[box], np.int16(kind), where=inside)
