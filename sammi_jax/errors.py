"""The one exception for unusable input, and how messages quote errors and list many items."""

import re
from collections.abc import Sequence

_LONGEST = 2000  # characters of a message
# What a terminal obeys or a log breaks a line at: control characters, Unicode's ends of lines, marks
# that turn the direction of writing, and halves of characters, which cannot be written at all.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class SammiError(Exception):
    """Input that cannot be used. The message is one line: what is wrong, then how to fix it.

    It may quote what a file holds: what is not printable is escaped, and the middle of a message
    that is too long is left out.
    """

    def __init__(self, message: str):
        super().__init__(_shortened(printable(message)))


def printable(text: str) -> str:
    """One line that a terminal only shows: ends of lines as a space, other controls escaped.

    Example:
        >>> printable("red \\x1b[31m" + chr(10) + "line")
        'red \\\\x1b[31m line'
    """
    text = " ".join(part.strip() for part in re.split("[\r\n]+", text) if part.strip())
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _shortened(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} [...] {text[-half:]}"


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
