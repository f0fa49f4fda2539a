"""The one exception for unusable input, and how its message lists many items."""

from collections.abc import Sequence


class SammiError(Exception):
    """Input that cannot be used. The message is one line: what is wrong, then how to mend it."""


def listed(items: Sequence[str], *, limit: int = 8, separator: str = ", ") -> str:
    """The first ``limit`` items and the number of the others.

    Example:
        >>> listed(["a", "b", "c", "d"], limit=2)
        'a, b and 2 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more
