"""`sammi segment`: overlays, label maps and summaries of images, from class names."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from sammi_jax.cli.options import add_model_argument, chosen_model
from sammi_jax.errors import SammiError

_DESCRIPTION = """\
Segment images into the named classes. For each image NAME.jpg three files are written:
  NAME_overlay.png  the classes in color, with mask outlines, points and a legend
  NAME_labels.png   the class index of every pixel (8 bits with a palette; 16 beyond 256 classes)
  NAME.json         the classes with their areas and mean scores, and the points"""

_EXAMPLE = """\
example:
  sammi segment photo.jpg --classes "wall, sky, tree, person" --model weights/sammi --out out/"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "segment",
        help="segment images into classes that you name",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files")
    parser.add_argument(
        "--classes",
        required=True,
        metavar="NAMES",
        help='class names such as "cat, dog", or a file with one name a line or a JSON list',
    )
    add_model_argument(parser, "a CAT-Seg or SAM-MI model folder")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Segment every image; one that fails is reported, and the others are still segmented."""
    from tqdm import tqdm

    from sammi_jax.files import one_line
    from sammi_jax.inference.segmenter import load
    from sammi_jax.text.vocabulary import parse_class_list

    class_names = parse_class_list(args.classes)
    stems = _stems(args.images)
    model = load(chosen_model(args))
    failed = 0
    with tqdm(total=len(stems), unit="image", disable=None) as bar:
        for path, stem in zip(args.images, stems, strict=True):
            try:
                written = model.segment(path, class_names).write(args.out, stem)
                tqdm.write(f"{path}: {', '.join(map(str, written))}")
            except SammiError as error:
                failed += 1
                tqdm.write(f"sammi: error: {error}", file=sys.stderr)
            except Exception as error:  # whatever one image does, the others are still segmented
                failed += 1
                what = f"{type(error).__name__}: {one_line(error)}"
                tqdm.write(f"sammi: error: {path}: {what}", file=sys.stderr)
            bar.update()
    return 1 if failed else 0


def _stems(paths: list[Path]) -> list[str]:
    """Names of the outputs.

    Raises:
        SammiError: two images would write the same files.
    """
    stems = [path.stem for path in paths]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise SammiError(
            f"several images are named {twice[0]} and would overwrite each other's results; "
            "segment them into different --out folders"
        )
    return stems
