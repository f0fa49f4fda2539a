"""`sammi segment`: pictures and class names in; overlays, label maps and summaries out."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from sammi_jax.errors import SammiError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "segment",
        help="segment pictures into classes that you name",
        description="Segment pictures into the named classes. Writes, for each picture, "
        "NAME_overlay.png, NAME_labels.png (palette PNG of class indices; 16-bit gray beyond 256 "
        "classes) and NAME.json.",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="picture files")
    parser.add_argument(
        "--classes",
        required=True,
        help='class names, "cat, dog", or a text file with one name a line',
    )
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="DIR",
        help="CAT-Seg or SAM-MI model folder",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Segment every picture; one that fails is reported and the others are still done."""
    from tqdm import tqdm

    from sammi_jax.inference.segmenter import load
    from sammi_jax.text.vocabulary import parse_class_list

    class_names = parse_class_list(args.classes)
    stems = _stems(args.images)
    model = load(args.model)
    failed = 0
    with tqdm(total=len(stems), unit="image", disable=None) as bar:
        for path, stem in zip(args.images, stems, strict=True):
            try:
                written = model.segment(path, class_names).write(args.out, stem)
                tqdm.write(f"{path}: {', '.join(map(str, written))}")
            except SammiError as error:
                failed += 1
                tqdm.write(f"sammi: error: {error}", file=sys.stderr)
            bar.update()
    return 1 if failed else 0


def _stems(paths: list[Path]) -> list[str]:
    """Names of the outputs; refused where two pictures would write the same files."""
    stems = [path.stem for path in paths]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise SammiError(
            f"several pictures are named {twice[0]} and would overwrite each other; "
            "segment them into different --out folders"
        )
    return stems
