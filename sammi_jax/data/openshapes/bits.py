"""Random numbers that are the same everywhere: raw Philox words and integers made from them.

A block of words follows from (seed, stream, index) alone, so nothing depends on the order of calls,
on the number of workers or on the version of numpy's ``Generator``. OpenShapes uses no floating
point anywhere: another libm cannot change a pixel.
"""

import numpy as np

from sammi_jax.errors import SammiError
from sammi_jax.typing import NpArray, UInt8

# The third counter word: scenes, single-object images, banks and points never share words.
STREAMS = {
    "train": 0,
    "val_seen": 1,
    "val_unseen": 2,
    "captions": 3,
    "banks": 4,
    "points": 5,
    "test_seen": 6,
    "test_unseen": 7,
}
_WORD = 1 << 64


def raw_words(seed: int, stream: str, index: int, count: int) -> NpArray:
    """``count`` uint64 words of the block (seed, stream, index): Philox4x64-10's counter mode.

    Raises:
        SammiError: ``seed`` or ``index`` is negative or does not fit 64 bits.
    """
    for name, value in (("seed", seed), ("index", index)):
        if not 0 <= value < _WORD:
            raise SammiError(f"openshapes: {name} {value} is not in 0 .. 2^64 - 1")
    counter = np.array([0, 0, STREAMS[stream], index], np.uint64)
    return np.random.Philox(key=int(seed), counter=counter).random_raw(count)


def between(word: int, low: int, high: int) -> int:
    """A Python integer in ``low .. high``, both included, from the upper half of a raw word."""
    return low + ((word >> 32) * (high - low + 1) >> 32)


def chance(word: int, percent: int) -> bool:
    """True with the given probability, from the upper half of a raw word."""
    return between(word, 0, 99) < percent


def bytes_of(words: NpArray) -> UInt8[NpArray, " m"]:
    """The uint64 words as bytes, eight each, lowest first on every machine."""
    return words.astype("<u8", copy=False).view(np.uint8)
