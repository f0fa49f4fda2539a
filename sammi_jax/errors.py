"""The one exception for unusable input, and how messages quote errors and list many items."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_LONGEST = 2000  # characters of a message
# What a terminal obeys or a log breaks a line at: control characters, Unicode's ends of lines,
# marks that turn the direction of writing, and halves of characters, which nothing can write.
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
        >>> printable(chr(7) + "a" + chr(10) + "b").count(chr(92))
        1
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


@contextmanager
def reading(where: object, mend: str, what: str = "cannot be read") -> Iterator[None]:
    """Whatever a decoder raises over a damaged or hostile file, as a `SammiError`.

    Decoders of other libraries raise errors of any type: what the broken part happened to give.

    Args:
        where: the file.
        mend: what to do about it.
        what: became of it.

    Raises:
        SammiError: the block raised an error.

    Example:
        >>> with reading("a.json", "export it again"):
        ...     raise ValueError("no number")
        Traceback (most recent call last):
        sammi_jax.errors.SammiError: a.json: cannot be read (no number); export it again
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, SammiError) or not is_failure(error):
            raise
        raise SammiError(f"{where}: {what} ({one_line(error)}); {mend}") from error


def is_failure(error: BaseException) -> bool:
    """Whether an error is one of a library: any exception, or a panic of one in Rust.

    A panic is no `Exception`, so that nobody overlooks it; ours all come of what a file holds.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def failure(where: object, error: Exception) -> str:
    """What became of one item of many, in one line: a `SammiError` names the culprit itself."""
    if isinstance(error, SammiError):
        return str(error)
    return f"{where}: {type(error).__name__}: {one_line(error)}"
