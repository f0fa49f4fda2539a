"""Cases that follow coverage, by atheris: ``python -m tests.fuzz.guided NAME --seconds 300``.

The reader and its cases are those of `tests.fuzz.run`; libFuzzer chooses the bytes from which
hypothesis makes a case, and keeps those that reach new branches of the package. The first fault
ends it, and the case is kept for ``python -m tests.fuzz.run NAME --again FILE``.
"""

import argparse
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris
from hypothesis import HealthCheck, given, settings

with atheris.instrument_imports(include=["sammi_jax"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(TARGETS), metavar="NAME")
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    target = TARGETS[args.name]
    here = tempfile.mkdtemp(prefix="sammi-fuzz-")
    os.chdir(here)  # a canary would be put here
    case_file, folder = Path(here, f"{args.name}.pickle"), Path(here, "case")

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(target.cases())
    def once(case):  # type: ignore[no-untyped-def]
        case_file.write_bytes(pickle.dumps(case))
        folder.mkdir()
        try:
            target.run(case, folder)
        except BaseException:
            print(f"the case: python -m tests.fuzz.run {args.name} --again {case_file}")
            raise
        finally:
            shutil.rmtree(folder)

    corpus, random = Path(here, "corpus"), Random(0)
    corpus.mkdir()
    for number in range(64):  # enough bytes for a whole case, from the start
        corpus.joinpath(f"{number:02d}").write_bytes(random.randbytes(2 ** random.randint(6, 13)))
    options = [f"-max_total_time={args.seconds}", "-rss_limit_mb=0", "-max_len=20000"]
    options += ["-len_control=0"]
    atheris.Setup([sys.argv[0], *options, "corpus"], once.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
