"""A reader under test: hostile cases for it, and how it is given one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.guard import check


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: of the target.
        cases: makes the strategy of its cases, once.
        run: gives it one case, in an empty folder.
        slow_cases: how many of them the slow suite runs.
    """

    name: str
    cases: Callable[[], st.SearchStrategy[Any]]
    run: Callable[[Any, Path], Any]
    slow_cases: int = 2000


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """The files of a case."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def file_target(
    name: str,
    file: str,
    contents: Callable[[], st.SearchStrategy[bytes]],
    read: Callable[[Path], Any],
    slow_cases: int = 2000,
    beside: Callable[[], Mapping[str, bytes]] = dict,
) -> Target:
    """A reader of one file.

    Args:
        name: of the target.
        file: what the file is called.
        contents: makes the strategy of its contents.
        read: the reader.
        slow_cases: as for `Target`.
        beside: makes the valid files beside it.
    """
    kept: dict[str, Mapping[str, bytes]] = {}

    def run(content: bytes, folder: Path) -> Any:
        if name not in kept:
            kept[name] = beside()
        write(folder, {**kept[name], file: content})
        return check(lambda: read(folder / file), str(folder), own=(folder,))

    return Target(name, contents, run, slow_cases)
