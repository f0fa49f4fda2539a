"""The one exception for unusable input, and how messages quote errors and list many items."""

from collections.abc import Sequence


class SammiError(Exception):
    """Input that cannot be used. The message is one line: what is wrong, then how to fix it."""


def listed(items: Sequence[str], *, limit: int = 8, separator: str = ", ") -> str:
    """The first ``limit`` items and the number of the others.

    Example:
        >>> listed(["a", "b", "c", "d"], limit=2)
        'a, b and 2 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def one_line(error: BaseException, limit: int = 160) -> str:
    """The first line of an error's message, to be quoted in a message of this package."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:limit]


def failure(where: object, error: Exception) -> str:
    """What became of one item of many, in one line: a `SammiError` names the culprit itself."""
    if isinstance(error, SammiError):
        return str(error)
    return f"{where}: {type(error).__name__}: {one_line(error)}"
