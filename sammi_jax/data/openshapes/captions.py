"""Single-object images with captions: the training data of a tiny CLIP.

A caption names some attributes of what it describes. It is also given as four integers, (is_stuff,
texture, color, shape or pattern), -1 where an attribute is not named (and for stuff's texture), so
that it is known whether it is true of another image too: such an image is no negative example.
"""

from collections.abc import Iterable
from typing import NamedTuple, SupportsIndex

import numpy as np

from sammi_jax.config.model import SegmenterConfig
from sammi_jax.data.openshapes.bits import between, chance, raw_words
from sammi_jax.data.openshapes.drawing import UNIT, render
from sammi_jax.data.openshapes.scenes import make_stuff, make_thing
from sammi_jax.data.openshapes.vocabulary import (
    ANY_SHAPE,
    COLORS,
    PATTERNS,
    SEEN_PAIRS,
    SEEN_STUFF,
    SHAPES,
    TEXTURES,
    UNSEEN_PAIRS,
    UNSEEN_STUFF,
)
from sammi_jax.errors import SammiError
from sammi_jax.typing import Array, Bool, Int, NpArray, UInt8

CAPTION_SIZE = 48
REGIMES = ("web", "strict")
TEMPLATE = SegmenterConfig.templates[0]

_KEPT = (100, 75, 85, 85)  # percent: how often a caption names is_stuff, texture, color, shape
_LAYOUT_WORDS = 32


class CaptionExample(NamedTuple):
    """An image of one object before one stuff region; row 0 is the object, row 1 the stuff.

    ``captions`` are the texts in the segmenter's template, ``named`` their attributes and
    ``attributes`` all the true ones (see the module's docstring).
    """

    image: UInt8[NpArray, "48 48 3"]
    captions: tuple[str, str]
    named: Int[NpArray, "2 4"]
    attributes: Int[NpArray, "2 4"]


class CaptionBatch(NamedTuple):
    """Stacked examples; ``captions`` are 2 B texts: object 0, stuff 0, object 1, ..."""

    image: UInt8[NpArray, "b 48 48 3"]
    captions: list[str]
    named: Int[NpArray, "b 2 4"]
    attributes: Int[NpArray, "b 2 4"]


def caption_example(index: int, *, seed: int = 0, regime: str = "web") -> CaptionExample:
    """The captioned image of that index.

    ``web`` draws from every combination of attributes, as real CLIP's captions did; ``strict`` only
    from those that the segmenter's training may see: neither an image nor a caption holds others.

    Raises:
        SammiError: an unknown regime, or a seed or index that is no natural number below 2^64.
    """
    if regime not in REGIMES:
        raise SammiError(f"openshapes: no regime {regime!r}; there are {', '.join(REGIMES)}")
    size = CAPTION_SIZE
    raw = raw_words(seed, "captions", index, _LAYOUT_WORDS + size * size * 3 // 8)
    words = raw[:_LAYOUT_WORDS].tolist()
    pairs, kinds = SEEN_PAIRS, SEEN_STUFF
    if regime == "web":
        pairs, kinds = pairs + UNSEEN_PAIRS, kinds + UNSEEN_STUFF
    stuff = make_stuff(kinds[between(words[0], 0, len(kinds) - 1)], words[1:5])
    radius = between(words[6], 11 * UNIT, 20 * UNIT)
    span = (size * UNIT * 3 // 10, size * UNIT * 7 // 10)
    thing = make_thing(pairs[between(words[5], 0, len(pairs) - 1)], radius, span, words[7:16])
    scene = render([stuff], [thing], [], raw[_LAYOUT_WORDS:], size)

    attributes = np.array(
        [(0, thing.texture, thing.color, thing.shape), (1, -1, stuff.color, stuff.pattern)],
        np.int32,
    )
    keep = [[chance(words[16 + i], p) for i, p in enumerate(_KEPT)]]
    keep.append([True, True, chance(words[20], _KEPT[2]), True])  # stuff is always named
    named = np.where(keep, attributes, np.int32(-1))
    return CaptionExample(
        scene.image, (caption_text(named[0]), caption_text(named[1])), named, attributes
    )


def caption_text(named: Int[NpArray, "4"]) -> str:
    """The caption of named attributes, in the segmenter's template."""
    is_stuff, texture, color, kind = (int(i) for i in named)
    words = [TEXTURES[texture]] if texture >= 0 else []
    words += [COLORS[color]] if color >= 0 else []
    if is_stuff:
        words.append(PATTERNS[kind])
    else:
        words.append(SHAPES[kind] if kind >= 0 else ANY_SHAPE)
    return TEMPLATE.format(" ".join(words))


def captions_true_of(
    attributes: Int[Array | NpArray, "b r 4"], named: Int[Array | NpArray, "n 4"]
) -> Bool[Array | NpArray, "b n"]:
    """Which captions are true of which images: of one of an image's ``r`` things and stuffs."""
    mine, wanted = attributes[:, :, None], named[None, None]
    return ((wanted == mine) | (wanted < 0)).all(-1).any(1)


def caption_batch(
    indices: Iterable[SupportsIndex], *, seed: int = 0, regime: str = "web"
) -> CaptionBatch:
    """The examples of those indices, stacked."""
    examples = [caption_example(int(i), seed=seed, regime=regime) for i in indices]
    return CaptionBatch(
        image=np.stack([e.image for e in examples]),
        captions=[text for e in examples for text in e.captions],
        named=np.stack([e.named for e in examples]),
        attributes=np.stack([e.attributes for e in examples]),
    )
