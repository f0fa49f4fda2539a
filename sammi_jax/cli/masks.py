"""`sammi masks`: SAM alone, by points, boxes, a mask, or a grid of points."""

import argparse
from pathlib import Path
from typing import Any

from sammi_jax.cli.options import add_model_argument, chosen_model
from sammi_jax.errors import SammiError, failure
from sammi_jax.files import local_copy
from sammi_jax.object_store import as_path, exists

_DESCRIPTION = """\
Find masks with SAM. Without a prompt, everything that a grid of points finds.
Each --points names one object, by one point or several; each --box one object. Written are:
  NAME_masks.png    the masks in color over the image
  NAME_masks.json   area, box, SAM's estimate of the IoU, stability and COCO RLE of each mask"""

_EXAMPLE = """\
examples:
  sammi masks photo.jpg --model weights/sam --out out/
  sammi masks photo.jpg --points "120,80; 140,90" --points 300,40 --model weights/sam --out out/
  sammi masks photo.jpg --box 40,30,210,180 --points "120,80; 60,60,0" --out out/
  (a third number 0 marks a point that is not on the object)"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "masks",
        help="find masks in images with SAM alone, by points, boxes or everywhere",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, folders or patterns"
    )
    add_model_argument(parser, "a SAM model folder, or a SAM-MI, whose SAM is used")
    parser.add_argument(
        "--out", required=True, type=as_path, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--points",
        action="append",
        default=[],
        metavar="X,Y[;X,Y...]",
        help="pixels of one object, counted from the top left",
    )
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="around one object"
    )
    parser.add_argument(
        "--mask",
        type=as_path,
        metavar="IMAGE",
        help="a rough mask of one object, not zero inside it",
    )
    parser.add_argument(
        "--grid", type=int, metavar="N", help="points along a side, without a prompt; default: 32"
    )
    parser.add_argument(
        "--min-iou", type=float, metavar="IOU", help="of SAM's own estimate; default: 0.88"
    )
    parser.add_argument(
        "--min-stability", type=float, metavar="IOU", help="of a mask at two thresholds; "
        "default: 0.95"
    )  # fmt: skip
    parser.add_argument(
        "--max-overlap", type=float, metavar="IOU", help="of two masks' boxes; default: 0.7"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Find masks in every image; one that fails is reported, and the others are still done."""
    import sys

    from tqdm import tqdm

    from sammi_jax.inference.image_files import find_images
    from sammi_jax.inference.mask_files import write_masks
    from sammi_jax.inference.towers import load_sam

    prompts = _prompts(args)
    options = _grid_options(args)
    if prompts and options:
        raise SammiError(
            f"--{next(iter(options)).replace('_', '-')} is for a grid: a prompt is given"
        )
    files = find_images(args.images)
    if prompts and len(files) > 1:
        raise SammiError(f"{len(files)} images: points, boxes and a mask belong to one image")
    exists(args.out)  # raises an error for a bucket that cannot be used
    sam = load_sam(chosen_model(args))
    failed = 0
    for file in tqdm(files, unit="image", disable=None):
        try:
            if prompts:
                found = _ask(sam, file.path, prompts)
            else:
                found = sam.everything(file.path, **options)
            written = write_masks(found, file, args.out)
            tqdm.write(f"{file.place}: {len(found.iou)} masks, {', '.join(map(str, written))}")
        except Exception as error:  # whatever one image does, the others are still done
            failed += 1
            tqdm.write(f"sammi: error: {failure(file.place, error)}", file=sys.stderr)
    return 1 if failed else 0


def _prompts(args: argparse.Namespace) -> dict[str, Any]:
    """Points with labels, boxes and the mask's file, those that are given."""
    found: dict[str, Any] = {}
    if args.points:
        objects = [[_numbers("--points", part, (2, 3)) for part in text.split(";")]
                   for text in args.points]  # fmt: skip
        if len({len(points) for points in objects}) > 1:
            raise SammiError("--points: give as many points for each object")
        found["points"] = [[point[:2] for point in points] for points in objects]
        found["labels"] = [[int(point[2]) if len(point) == 3 else 1 for point in points]
                           for points in objects]  # fmt: skip
    if args.box:
        found["boxes"] = [_numbers("--box", text, (4,)) for text in args.box]
    if args.mask is not None:
        found["masks"] = local_copy(args.mask)
    return found


def _numbers(option: str, text: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise SammiError(
            f"{option} {text!r}: give {' or '.join(map(str, counts))} numbers with commas between"
        )
    return numbers


def _grid_options(args: argparse.Namespace) -> dict[str, Any]:
    names = ("grid", "min_iou", "min_stability", "max_overlap")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _ask(sam: Any, image: Path, prompts: dict[str, Any]) -> Any:
    from sammi_jax.images import load_image
    from sammi_jax.inference.prompting import mask_prompt

    given = dict(prompts)
    pixels = load_image(image)
    if "masks" in given:
        mask: Any = load_image(given["masks"]).any(axis=-1)
        given["masks"] = mask_prompt(
            mask, pixels.shape[:2], sam.config.image_size, sam.config.mask_size
        )
    return sam.segment(pixels, **given)
