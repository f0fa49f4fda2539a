"""Issue cycles of TPU kernels, read from the programs that libtpu writes when it compiles.

A TPU core issues one bundle (a very long instruction word) a cycle, in order. Bundles times the
iterations of the loops around them are therefore a kernel's time on the core; waits for memory
are not among them. libtpu writes the bundles of each instruction of a compiled program to
``*-NAME-NN-final_bundles.txt``; of equal kernels it writes one only.

All bundles in a loop count at each iteration, those that a branch skips included, such as the ones
that begin and end an accumulation: an upper bound, close where the rest of the body is long.
"""

import os
import re
import tempfile
from functools import cache
from pathlib import Path

_FILE = re.compile(r"\d+-(.+)-\d+-final_bundles\.txt")
_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0)\s+([A-Z]{2})?\s*: (>*) *\{(\}?)")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %(\w+), (\d+) /\* loop exit test \*/")


@cache
def _dump() -> tempfile.TemporaryDirectory[str]:
    """The folder that libtpu writes to; it is deleted at the end of the process."""
    folder = tempfile.TemporaryDirectory(prefix="sammi-bundles-")
    flags = (
        f"--xla_jf_dump_to={folder.name}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*",
    )
    os.environ["LIBTPU_INIT_ARGS"] = " ".join((os.environ.get("LIBTPU_INIT_ARGS", ""), *flags))
    return folder


class Bundles:
    """What libtpu wrote in one compilation.

    To be made before libtpu's first use in the process, which is when it reads its flags; where
    libtpu was used before, it writes nothing, and no kernel has known cycles.
    """

    def __init__(self) -> None:
        self._folder = Path(_dump().name)
        for path in self._folder.iterdir():
            path.unlink()

    def cycles(self, name: str) -> int | None:
        """Issue cycles of the instruction of this name; None: its bundles were not written."""
        for path in self._folder.iterdir():
            found = _FILE.fullmatch(path.name)
            if found and found[1] == name:
                return issue_cycles(path.read_text())
        return None


def issue_cycles(text: str) -> int:
    """Bundles of a program, those in loops multiplied by the iterations.

    A loop whose bound is not in the text counts once.

    Args:
        text: ``final_bundles`` as libtpu writes them: ``>`` for each loop around a bundle, ``LB``
            before a loop's first, ``loop exit test`` in a comparison with its bound.
    """
    loops = [_Loop()]  # the program itself, and the loops around the current bundle
    for line in text.splitlines():
        bundle = _BUNDLE.match(line)
        if not bundle:
            continue
        depth, begins = len(bundle[2]), bundle[1] == "LB"
        empty = bool(bundle[3])  # written without its depth
        while not empty and len(loops) > depth + (not begins):
            loops[-2].cycles += loops.pop().total
        if begins:
            loops.append(_Loop())
        loops[-1].cycles += 1
        if test := _EXIT.search(line):
            step = re.search(rf"%{test[1]} = sadd\.s32 (?:%\w+, )?(\d+)\b", text)
            loops[-1].trips = -(-int(test[2]) // (int(step[1]) if step else 1))
    while len(loops) > 1:
        loops[-2].cycles += loops.pop().total
    return loops[0].cycles


class _Loop:
    """Bundles of one iteration, and the number of iterations."""

    def __init__(self) -> None:
        self.cycles, self.trips = 0, 1

    @property
    def total(self) -> int:
        return self.cycles * self.trips
