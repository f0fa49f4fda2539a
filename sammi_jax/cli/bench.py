"""``sammi bench``: our speed beside PyTorch's, on one CPU core."""

import argparse
import sys

from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path

NAMES = (
    "clip_image",
    "clip_text",
    "sam_encoder",
    "sam_decoder",
    "aggregation",
    "train_step",
    "image_to_labels",
    "resize",
    "masks",
)
_DESCRIPTION = """\
Time a part of the models beside its PyTorch peer (transformers' CLIP and SAM, CAT-Seg in torch) on
one CPU core. Both get equal random weights and inputs; their outputs are compared before anything
is timed; then they run in turn. What counts is CPU seconds, since other programs share the
machine. docs/speed.md explains the numbers."""
_EPILOG = """\
examples:
  sammi bench clip_image sam_decoder --out speed.json
  sammi bench aggregation --count 20,150 --runs 5
  sammi bench resize --against speed.json"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "bench",
        help="time a part of the models beside its PyTorch peer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=NAMES, help=f"any of {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--count",
        metavar="N,..",
        help="numbers of classes, images, prompts or points instead of the usual ones",
    )
    parser.add_argument(
        "--size",
        choices=("base", "tiny"),
        default="base",
        help="base: CLIP ViT-B/16, SAM ViT-B (default); tiny: the demo's models, for a trial",
    )
    parser.add_argument(
        "--runs", type=int, default=3, metavar="N", help="warm runs of each side; default 3"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=as_path,
        help="JSON file that the records are added to; all that it then holds are printed",
    )
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=as_path,
        help="such a file: exit code 1 if a ratio is more than 1.2 times the recorded one",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, keep the records, compare."""
    from sammi_jax.bench import report
    from sammi_jax.bench.cases import CASES
    from sammi_jax.bench.measure import check_peers, measure

    if args.runs < 1:
        raise SammiError(f"--runs {args.runs}: give at least 1")
    counts = None if args.count is None else _parse_counts(args.count)
    against = None if args.against is None else report.read_records(args.against)
    if args.out is not None and args.out.exists():
        report.read_records(args.out)  # before anything takes time
    check_peers()
    records = []
    for name in args.names:
        for count in counts or CASES[name].counts:
            print(f"measuring {name}, {count} {CASES[name].unit}", file=sys.stderr)
            records.append(measure(name, count, args.size, args.runs))
            if args.out is not None:
                report.write_records(args.out, records[-1:])
    shown = records if args.out is None else list(report.read_records(args.out).values())
    print(report.table(shown))
    print(report.conditions(records[-1]))
    lines = [] if against is None else report.slower(records, against)
    for line in lines:
        print(f"sammi: slower: {line}", file=sys.stderr)
    return 1 if lines else 0


def _parse_counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SammiError(f"--count {text}: write numbers with commas between: 20,150") from None
