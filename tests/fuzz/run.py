"""Give a reader many cases: ``python -m tests.fuzz.run NAME --cases N --seed S``.

Cases come in rounds, each with a seed of its own. The case in work is kept in a file, so that one
that ends the process can be looked at.
"""

import argparse
import os
import pickle
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.fuzz.target import Target

LONGEST = 4000  # characters of a case that a failure shows
ROUND = 1000  # hypothesis remembers all cases of a round


class _Shown:
    """A case of which a failure shows no more than can be read."""

    def __init__(self, case: Any):
        self.case = case

    def __repr__(self) -> str:
        text = repr(self.case)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"


def run_cases(target: Target, cases: int, first_seed: int, keep: Path | None = None) -> int:
    """Run cases and return how many there were; the first failure is shrunk and raised.

    Args:
        target: the reader.
        cases: how many.
        first_seed: of the first round; each further one has the next.
        keep: where the case in work is kept.
    """
    done = 0
    options = settings(
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
        phases=[Phase.generate, Phase.shrink],
        print_blob=True,
    )
    strategy = target.cases().map(_Shown)
    with tempfile.TemporaryDirectory(prefix="sammi-fuzz-") as top:
        folder = Path(top, "case")

        def once(shown):  # type: ignore[no-untyped-def]
            nonlocal done
            done += 1
            if keep is not None:
                keep.write_bytes(pickle.dumps(shown.case))
            folder.mkdir()
            try:
                target.run(shown.case, folder)
            finally:
                shutil.rmtree(folder)

        round_seed = first_seed
        while done < cases:
            test = settings(options, max_examples=min(cases - done, ROUND))(given(strategy)(once))
            seed(round_seed)(test)()
            round_seed += 1
    return done


def main() -> None:
    """The command."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(TARGETS), metavar="NAME")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="file for the case in work")
    parser.add_argument("--again", type=Path, help="run the case in this file only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sammi-fuzz-") as here:
        os.chdir(here)  # a canary would be put here
        for name in args.names:
            start = time.process_time()
            if args.again:
                folder = Path(here, "case")
                folder.mkdir()
                print(repr(TARGETS[name].run(pickle.loads(args.again.read_bytes()), folder)))
                continue
            done = run_cases(
                TARGETS[name], args.cases or TARGETS[name].slow_cases, args.seed, args.keep
            )
            print(f"{name}: {done} cases, {time.process_time() - start:.0f} s", flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
