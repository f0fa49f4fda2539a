"""Whether a source folder holds every file of a split."""

from collections.abc import Sequence

from sammi_jax.data.prepare.labels import open_label
from sammi_jax.data.prepare.layout import Layout, Split
from sammi_jax.data.prepare.pairs import Pair
from sammi_jax.data.prepare.pixels import count_tiles
from sammi_jax.errors import listed


def check_complete(
    layout: Layout, split: Split, pairs: Sequence[Pair], lacking: Sequence[str]
) -> str | None:
    """What is wrong with a source: files without a partner, or a wrong count; None if nothing is.

    Args:
        layout: of the set.
        split: whose counts are known.
        pairs: what was found.
        lacking: a line about each file without its partner.
    """
    problems = []
    if lacking:
        problems.append(listed(lacking))
    count = _count_examples(layout, pairs)
    if count not in split.counts:
        unit = "images" if layout.tile is None else "tiles"
        expected = " or ".join(f"{number:,}" for number in split.counts)
        problems.append(f"{count:,} labeled {unit}, not {expected}")
    return "; ".join(problems) or None


def _count_examples(layout: Layout, pairs: Sequence[Pair]) -> int:
    if layout.tile is None:
        return len(pairs)
    sizes = (_label_size(pair) for pair in pairs)
    return sum(count_tiles(height, width, layout.tile) for height, width in sizes)


def _label_size(pair: Pair) -> tuple[int, int]:
    """(height, width) of a pair's label, from the head of its file."""
    with open_label(pair.labels[0], load=False) as image:
        return image.height, image.width
