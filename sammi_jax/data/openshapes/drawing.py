"""The drawing of a scene, in fixed-point integers."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sammi_jax.data.openshapes.banks import (
    NUM_PAINTS,
    NUM_TONES,
    OUTLINE,
    SHAPE_RADIUS,
    SHAPE_REACH,
    SHAPE_SIDE,
    STUFF_ELEMENT,
    STUFF_GROUND,
    TEXTURE_SIDE,
    banks,
    wave,
)
from sammi_jax.data.openshapes.bits import between, bytes_of
from sammi_jax.data.openshapes.parts import connected_parts
from sammi_jax.data.openshapes.vocabulary import object_class, stuff_class
from sammi_jax.typing import Bool, Int, NpArray, UInt8

UNIT = 16  # positions and radii are in 1/16 pixel
_TURN = 256  # tilt = 2 atan(k / 256), so that its sine and cosine are rational
_ONE = 1 << 14  # 1.0 of sines and cosines

# Color by code: base * _SHADE / 256 + _WHITE. Texture elements are dark, or else whitened.
_SHADE = np.array([[0, 72, 256, 196, 0, 72, 108, 82], [0, 72, 256, 196, 0, 72, 96, 80]])
_WHITE = np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 156, 126]])
# The outline has no texture: shape code + TEXTURED -> code.
_FUSE = np.array([0, 1, 2, 3, 0, OUTLINE, 6, 7], np.uint8)
# Stuff by paint: brightness 0.47 to 1 in 1/256, and code.
_TONES = np.tile(np.arange(NUM_TONES) * 9 + 121, 2)
_STUFF_CODES = np.repeat(np.array([STUFF_GROUND, STUFF_ELEMENT], np.uint8), NUM_TONES)


class Stuff(NamedTuple):
    """Kind and appearance of a stuff region."""

    pattern: int
    color: int
    base: tuple[int, ...]  # the color of this region
    offset: tuple[int, int]  # (y, x) of the window in the stuff map


class Thing(NamedTuple):
    """Kind and appearance of an object. Lengths in 1/16 pixel."""

    texture: int
    color: int
    shape: int
    x: int
    y: int
    radius: int
    tilt: int  # angle = 2 atan(tilt / 256)
    phase: tuple[int, int]  # of the texture, in pixels
    base: tuple[int, ...]
    whitened: int  # texture elements are 0 dark, 1 whitened


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    ``classes`` holds the ids of vocabulary.py; ``instances`` numbers stuff regions from 0, then
    objects in painter's order (hidden ones have no pixel); ``codes`` tells the pieces of an
    instance apart (banks.py: OUTLINE, HALF_A, HALF_B, TEXTURED, STUFF_*).
    """

    image: UInt8[NpArray, "h w 3"]
    classes: Int[NpArray, "h w"]
    instances: Int[NpArray, "h w"]
    codes: UInt8[NpArray, "h w"]

    @cached_property
    def parts(self) -> Int[NpArray, "h w"]:
        """Connected pieces (int32, from 1, in raster order); pieces below 6 pixels are 0."""
        return connected_parts(self.instances.astype(np.int32) * 8 + self.codes)


def render(
    ground: list[Stuff],
    things: list[Thing],
    border: list[int],
    noise: NpArray,
    size: int,
) -> Scene:
    """Draw the ground, then the objects in order, then noise over all.

    One byte a pixel is painted, instance * 32 + paint; colors, classes and codes are read from
    tables of 256 entries at the end. ``border`` (four words) separates two stuff regions;
    the bytes of ``noise`` become noise of the pixels.
    """
    canvas = np.empty((size, size), np.uint8)
    colors = np.zeros((256 // NUM_PAINTS, NUM_PAINTS, 3), np.int16)
    codes = np.zeros((256 // NUM_PAINTS, NUM_PAINTS), np.uint8)
    classes = np.zeros(256 // NUM_PAINTS, np.int16)
    for i, stuff in enumerate(ground):
        window = tuple(slice(o, o + size) for o in stuff.offset)
        paint = banks().stuff[stuff.pattern][window] + np.uint8(NUM_PAINTS * i)
        np.copyto(canvas, paint, where=True if i == 0 else _beyond_border(border, size))
        colors[i] = np.array(stuff.base) * _TONES[:, None] >> 8
        codes[i] = _STUFF_CODES
        classes[i] = stuff_class(stuff.pattern, stuff.color)
    for i, thing in enumerate(things, len(ground)):
        _draw(thing, i, canvas)
        shade, white = _SHADE[thing.whitened][:, None], _WHITE[thing.whitened][:, None]
        colors[i, : len(shade)] = (np.array(thing.base) * shade >> 8) + white
        codes[i, : len(shade)] = range(len(shade))
        classes[i] = object_class(thing.texture, thing.color, thing.shape)
    raw = bytes_of(noise)[: canvas.size * 3].reshape(size, size, 3)
    # triangular in -15..15, sigma 6.5: the sum of a byte's two halves
    image = (colors.reshape(256, 3) - 15).take(canvas, axis=0) + ((raw & 15) + (raw >> 4))
    instances = canvas // NUM_PAINTS
    return Scene(
        image=image.clip(0, 255).astype(np.uint8),
        classes=classes.take(instances),
        instances=instances.astype(np.int16),
        codes=codes.ravel().take(canvas),
    )


def _beyond_border(words: list[int], size: int) -> Bool[NpArray, "h w"]:
    """True below (or right of) a tilted wavy line through the middle third."""
    along = np.arange(size)
    tilt = between(words[0], -120, 120)  # slope in 1/256
    middle = between(words[1], size // 3, size - size // 3)
    border = middle + (tilt * (along - size // 2) >> 8)
    border = border + wave(along + between(words[2], 0, 31), 32, 3)
    beyond = along[:, None] > border[None, :]
    return beyond.T if between(words[3], 0, 1) else beyond


def _draw(thing: Thing, instance: int, canvas: UInt8[NpArray, "h w"]) -> None:
    """Paint an object in its bounding box: gather its rotated shape and texture from the banks."""
    reach = thing.radius * SHAPE_REACH // SHAPE_RADIUS
    top, left = max(0, (thing.y - reach) // UNIT), max(0, (thing.x - reach) // UNIT)
    box = canvas[top : (thing.y + reach) // UNIT + 1, left : (thing.x + reach) // UNIT + 1]
    dy = np.arange(top, top + box.shape[0]) * UNIT + (UNIT // 2 - thing.y)
    dx = np.arange(left, left + box.shape[1]) * UNIT + (UNIT // 2 - thing.x)
    square = _TURN**2 + thing.tilt**2
    cos = (_TURN**2 - thing.tilt**2) * _ONE // square
    sin = 2 * _TURN * thing.tilt * _ONE // square
    u = cos * dx[None, :] + sin * dy[:, None]  # rotated, in 1/16 pixel x 2^14
    v = cos * dy[:, None] - sin * dx[None, :]

    middle = TEXTURE_SIDE // 2
    texel = ((v >> 18) + (middle + thing.phase[0])) * TEXTURE_SIDE
    texel += (u >> 18) + (middle + thing.phase[1])
    # nominal radius -> SHAPE_RADIUS; the factor has 14 more bits
    factor = (SHAPE_RADIUS << 14) // thing.radius
    cell = ((v * factor >> 28) + SHAPE_SIDE // 2) * SHAPE_SIDE
    cell += (u * factor >> 28) + SHAPE_SIDE // 2
    shape = banks().shapes[thing.shape].take(cell)
    code = _FUSE.take(shape + banks().textures[thing.texture].take(texel))
    np.copyto(box, code + np.uint8(NUM_PAINTS * instance), where=shape > 0)
