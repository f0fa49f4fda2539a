"""Mutation testing: how many small faults, put into the code one by one, do the tests find?

    make mutants                                                # all groups, two hours on two cores
    python tests/mutants.py --groups metrics --sample 200

For each group of modules, cosmic-ray makes mutants (an operator or comparison exchanged, a number
changed, a condition negated, a loop skipped) of a copy of the committed code. A random sample is
tested with the group's own fast tests. Survivors are printed as patches: each is either a change
without effect, or a test that is missing.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db  # pyright: ignore[reportMissingImports]
from cosmic_ray.work_item import (  # pyright: ignore[reportMissingImports]
    TestOutcome,
    WorkItem,
)

ROOT = Path(__file__).parents[1]
SEED = 0
# modules, and the tests that should notice
GROUPS = {
    "metrics": (
        ["evaluation/metrics.py", "evaluation/totals.py"],
        ["test_metrics.py", "test_evaluation.py"],
    ),
    "rules": (
        ["convert/rules.py", "convert/catseg_keys.py"],
        ["test_rules.py", "test_catseg_convert.py"],
    ),
    "labels": (
        ["data/prepare/labels.py", "data/vocabulary.py"],
        ["test_data_labels.py", "test_data_catalogue.py"],
    ),
    "heads": (
        ["models/tspp.py", "models/smagg.py", "models/dmi.py", "models/smoothing.py"],
        ["test_tspp.py", "test_smagg.py", "test_dmi.py", "test_smoothing.py"],
    ),
}
# Exchanges that mostly end in a type error (a shift of floats) say nothing about tests.
ARITHMETIC = (
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Mul_Add", "FloorDiv_Mul", "Pow_Mul"),
    "BitAnd_BitOr",
)
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{name}" for name in ARITHMETIC),
    *("core/NumberReplacer", "core/AddNot", "core/ReplaceTrueWithFalse"),
    *("core/ReplaceFalseWithTrue", "core/ReplaceAndWithOr", "core/ReplaceOrWithAnd"),
    *("core/ZeroIterationForLoop", "core/ReplaceContinueWithBreak", "core/ExceptionReplacer"),
    *("core/ReplaceUnaryOperator_Delete_Not", "core/ReplaceUnaryOperator_USub_UAdd"),
)
COMPARISON = "core/ReplaceComparisonOperator_"
IDENTITY = ("Is", "IsNot")  # of two numbers: no exchange that a person makes by mistake
CONFIG = """\
[cosmic-ray]
module-path = {modules}
timeout = 300.0
excluded-modules = []
test-command = "{python} -m pytest -x -q -p no:cacheprovider {tests}"
[cosmic-ray.distributor]
name = "local"
"""


def is_telling(item: WorkItem) -> bool:
    """Whether a mutant is like a fault that a person makes."""
    name = item.mutations[0].operator_name
    if name.startswith(COMPARISON):
        return name.split("_")[-1] not in IDENTITY
    return name in OPERATORS


def run(group: str, sample: int, tree: Path) -> tuple[int, int]:
    """Test a group's mutants in a copy of the code; returns how many were found, and tested."""
    modules, tests = GROUPS[group]
    config, session = tree / f"{group}.toml", tree / f"{group}.sqlite"
    config.write_text(
        CONFIG.format(
            modules=[f"sammi_jax/{name}" for name in modules],
            python=sys.executable,
            tests=" ".join(f"tests/{name}" for name in tests),
        )
    )
    command = [sys.executable, "-m", "cosmic_ray.cli"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), *sys.path])}

    def cosmic_ray(*arguments: str | Path) -> None:
        subprocess.run([*command, *arguments], cwd=tree, env=environment, check=True)

    cosmic_ray("init", config, session)
    with use_db(session, WorkDB.Mode.open) as database:
        telling = sorted(filter(is_telling, database.work_items), key=lambda i: str(i.mutations))
        chosen = random.Random(SEED).sample(telling, min(sample, len(telling)))
        database.clear()
        database.add_work_items(chosen)
    cosmic_ray("--verbosity", "WARNING", "exec", config, session)
    with use_db(session, WorkDB.Mode.open) as database:
        results = [result for _, result in database.results]
    survivors = [r for r in results if r.test_outcome == TestOutcome.SURVIVED]
    for result in survivors:
        print(result.diff)
    found = len(results) - len(survivors)
    print(
        f"{group}: {found} of {len(results)} found, of {len(telling)} telling mutants", flush=True
    )
    return found, len(results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Put small faults into the code and run the tests."
    )
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--sample", type=int, default=100, help="mutants of a group")
    options = parser.parse_args()
    found = tested = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
        for group in options.groups:
            counts = run(group, options.sample, tree)
            found, tested = found + counts[0], tested + counts[1]
    print(f"mutation score: {found / tested:.1%} ({found} of {tested})")


if __name__ == "__main__":
    main()
