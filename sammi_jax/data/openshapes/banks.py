"""The building blocks of scenes: maps of shapes, textures and stuff, in integers only."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from sammi_jax.data.openshapes.bits import bytes_of, raw_words
from sammi_jax.data.openshapes.vocabulary import PATTERNS, SHAPES, TEXTURES
from sammi_jax.typing import Bool, Int, NpArray, UInt8

# Codes of a pixel inside an object. TEXTURED is added on the elements of a texture.
OUTLINE, HALF_A, HALF_B, TEXTURED = 1, 2, 3, 4
STUFF_GROUND, STUFF_ELEMENT = 0, 4  # mortar and brick, gap and board, ...

SHAPE_SIDE = 192  # canonical maps; the center is at (96, 96)
SHAPE_REACH = 64  # no shape reaches farther from the center than this
SHAPE_RADIUS = 52  # of an object of any size, in its shape's map
TEXTURE_SIDE = 128  # side of a texture map; one texel is one pixel of the scene
TEXTURE_PERIOD = 24  # of all textures: stripes and dots repeat after 6 texels, checks after 8
STUFF_SIDE = 240  # period of a stuff map; one texel is one pixel
NUM_TONES = 16  # shades within a stuff pattern; higher is brighter
NUM_PAINTS = 2 * NUM_TONES  # of one instance: an object's codes, or tone + 16 * is_element of stuff

_OUTLINE_WIDTH = 6  # of the canonical maps: 1 to 2.6 pixels in a scene
_STAR = ((0, -62), (15, -21), (59, -19), (24, 8), (36, 50), (0, 25))  # right half, clockwise


@dataclass(frozen=True)
class Banks:
    """All maps. ``shapes`` hold 0 outside, else OUTLINE, HALF_A or HALF_B.

    ``textures`` are TEXTURED on a texture's elements, else 0. ``stuff`` holds tone + 16 *
    is_element of each pattern (an element is a brick, stone, board or crest), periodic and stored
    twice along each axis: a window at any offset is a slice.
    """

    shapes: UInt8[NpArray, "s 192 192"]
    textures: UInt8[NpArray, "t 128 128"]
    stuff: UInt8[NpArray, "p 480 480"]


@cache
def banks() -> Banks:
    """The banks, made once per process (about 50 ms)."""
    patterns = {"waves": _waves, "bricks": _bricks, "gravel": _gravel, "planks": _planks}
    stuff = [tone + NUM_TONES * element for tone, element in (patterns[p]() for p in PATTERNS)]
    return Banks(
        shapes=np.stack([_shape_codes(name) for name in SHAPES]),
        textures=np.stack([_texture(name) for name in TEXTURES]),
        stuff=np.tile(np.stack(stuff), (1, 2, 2)).astype(np.uint8),
    )


def wave(t: Int[NpArray, "*n"], wavelength: int, amplitude: int) -> Int[NpArray, "*n"]:
    """A sine made of parabolas: integers in -amplitude..amplitude (``wavelength`` even)."""
    half = wavelength // 2
    phase = t % half
    height = 4 * amplitude * phase * (half - phase) // (half * half)
    return np.where(t % wavelength < half, height, -height)


def _polygon(points: tuple[tuple[int, int], ...]) -> Bool[NpArray, "192 192"]:
    """Even-odd rule: a ray to the left of a pixel inside crosses an odd number of edges."""
    y, x = np.mgrid[:SHAPE_SIDE, :SHAPE_SIDE] - SHAPE_SIDE // 2
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        right = (x - x0) * (y1 - y0) > (y - y0) * (x1 - x0)
        inside ^= (y >= y0) & (y < y1) & right
    return inside


def _shape_mask(name: str) -> Bool[NpArray, "192 192"]:
    y, x = np.mgrid[:SHAPE_SIDE, :SHAPE_SIDE] - SHAPE_SIDE // 2
    distance = x * x + y * y
    if name == "circle":
        return distance <= 54 * 54
    if name == "ring":
        return (distance <= 58 * 58) & (distance > 27 * 27)
    if name == "square":
        return (abs(x) <= 44) & (abs(y) <= 44)
    if name == "cross":
        return (np.minimum(abs(x), abs(y)) <= 18) & (np.maximum(abs(x), abs(y)) <= 56)
    if name == "triangle":
        return _polygon(((0, -60), (56, 40), (-56, 40)))
    return _polygon(_STAR + tuple((-px, py) for px, py in _STAR[-2:0:-1]))


def _shape_codes(name: str) -> UInt8[NpArray, "192 192"]:
    """The rim of the mask is the outline; inside it are two halves, left and right."""
    mask = _shape_mask(name)
    core = mask.copy()
    reach = range(-_OUTLINE_WIDTH, _OUTLINE_WIDTH + 1)
    for dy in reach:
        for dx in reach:
            if dx * dx + dy * dy <= _OUTLINE_WIDTH**2:
                core &= np.roll(mask, (dy, dx), (0, 1))
    x = np.arange(SHAPE_SIDE) - SHAPE_SIDE // 2
    halves = np.where(x < 0, HALF_A, HALF_B)[None, :]
    return np.where(core, halves, np.where(mask, OUTLINE, 0)).astype(np.uint8)


def _texture(name: str) -> UInt8[NpArray, "128 128"]:
    y, x = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE]
    if name == "striped":
        mask = y % 6 < 3
    elif name == "checkered":
        mask = (x // 4 + y // 4) % 2 == 1
    elif name == "dotted":
        # doubled coordinates: the center of a dot lies between texels
        u, v = 2 * (x % 6) - 5, 2 * (y % 6) - 5
        mask = u * u + v * v <= 11
    else:
        mask = np.zeros(x.shape, bool)
    return np.where(mask, TEXTURED, 0).astype(np.uint8)


def _noise(salt: int, shape: tuple[int, ...], span: int) -> Int[NpArray, "*n"]:
    """Fixed numbers in 0..span-1, one stream for each ``salt``."""
    count = int(np.prod(shape))
    values = bytes_of(raw_words(0, "banks", salt, (count + 7) // 8))[:count]
    return (values.astype(np.int64) * span >> 8).reshape(shape)


def _waves() -> tuple[NpArray, NpArray]:
    """Wavy bands, 6 pixels bright and 6 dark."""
    y, x = np.mgrid[:STUFF_SIDE, :STUFF_SIDE]
    crest = (y + wave(x, 24, 4)) % 12 < 6
    return np.where(crest, 15, 5), crest


def _bricks() -> tuple[NpArray, NpArray]:
    """Courses 8 pixels high of bricks 16 wide, every second one shifted; mortar of 2, bright."""
    y, x = np.mgrid[:STUFF_SIDE, :STUFF_SIDE]
    course = y // 8
    x = (x + 8 * (course % 2)) % STUFF_SIDE
    brick = (y % 8 >= 2) & (x % 16 >= 2)
    shade = 3 + _noise(1, (30, 15), 6)[course, x // 16]
    return np.where(brick, shade, 15), brick


def _gravel() -> tuple[NpArray, NpArray]:
    """Voronoi cells of a jittered 8-pixel lattice, a stone each, with dark gaps between."""
    cell, count = 8, STUFF_SIDE // 8
    jitter = 1 + _noise(2, (2, count, count), cell - 2)
    y, x = np.mgrid[:STUFF_SIDE, :STUFF_SIDE]
    best = np.full((2, *x.shape), 1 << 20)
    position = np.zeros((2, 2, *x.shape), np.int64)  # of the nearest and of the second nearest
    stone = np.zeros(x.shape, np.int64)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            row, column = y // cell + dy, x // cell + dx
            wrapped = row % count, column % count
            where = np.stack([cell * row + jitter[0][wrapped], cell * column + jitter[1][wrapped]])
            distance = (where[0] - y) ** 2 + (where[1] - x) ** 2
            first, second = distance < best[0], distance < best[1]
            position[1] = np.where(first, position[0], np.where(second, where, position[1]))
            best[1] = np.where(first, best[0], np.where(second, distance, best[1]))
            position[0] = np.where(first, where, position[0])
            best[0] = np.where(first, distance, best[0])
            stone = np.where(first, wrapped[0] * count + wrapped[1], stone)
    # distance to the bisector = (d2^2 - d1^2) / (2 |p2 - p1|); a gap is where it is below 0.8
    apart = ((position[1] - position[0]) ** 2).sum(0)
    solid = 100 * (best[1] - best[0]) ** 2 >= 256 * apart
    shade = 6 + _noise(3, (count * count,), 10)[stone]
    return np.where(solid, shade, 1), solid


def _planks() -> tuple[NpArray, NpArray]:
    """Upright boards 10 pixels wide and 60 long, with grain, and dark gaps of 1 pixel."""
    y, x = np.mgrid[:STUFF_SIDE, :STUFF_SIDE]
    column = x // 10
    y = (y + 5 * _noise(4, (24,), 12)[column]) % STUFF_SIDE
    board = (x % 10 != 0) & (y % 60 != 0)
    shade = 9 + _noise(5, (24, 4), 7)[column, y // 60]
    grain = _noise(6, (STUFF_SIDE, 4), 4)[x, y // 60] == 0
    return np.where(board, shade - 3 * grain, 0), board
