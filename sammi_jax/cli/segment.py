"""`sammi segment`: overlays, label maps and summaries of images, from class names."""

import argparse
import sys

from sammi_jax.cli.options import add_model_argument, chosen_model
from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path

_DESCRIPTION = """\
Segment images into the named classes. For each image NAME.jpg these files are written:
  NAME_overlay.png  the classes in color, with mask outlines, points and a legend
  NAME_labels.png   the class index of every pixel (8 bits with a palette; 16 beyond 256 classes)
  NAME_labels.tif   the same with its place on the ground, of a GeoTIFF (needs rasterio)
  NAME.json         classes with area, score and COCO RLE; SAM's masks with their names; points
Run the same command again to resume: images that have a result are left out."""

_EXAMPLE = """\
examples:
  sammi segment photo.jpg --classes "wall, sky, tree, person" --model weights/sammi --out out/
  sammi segment photos/ "more/*.png" --classes names.txt --background other --threshold 0.2 \\
      --model weights/sammi --out out/ --coco out/coco.json
  sammi segment ortho.tif --classes "road; street, roof, field" --tile 768 --out out/"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "segment",
        help="segment images into classes that you name",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help='image files, folders (searched to any depth), or patterns such as "photos/*.jpg"',
    )
    classes = parser.add_mutually_exclusive_group(required=True)
    classes.add_argument(
        "--classes",
        metavar="NAMES",
        help='class names such as "cat, dog" or, with synonyms, "sofa; couch, dog"; or a file '
        "with one name a line or a JSON list",
    )
    classes.add_argument(
        "--vocabulary",
        metavar="NAME",
        help="the classes of a known data set, such as ade20k_150 ('sammi datasets list')",
    )
    parser.add_argument(
        "--background",
        metavar="NAME",
        help="a class for what is none of the others: asked for by its name, or, with --threshold, "
        "what no class reaches",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="pixels whose best score is lower, between 0 and 1, are background",
    )
    add_model_argument(parser, "a CAT-Seg or SAM-MI model folder")
    parser.add_argument(
        "--out", required=True, type=as_path, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut large images into square tiles of this side: details stay, and memory does not "
        "grow with the image; default: each image as a whole",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="that neighboring tiles share; default: a quarter of the side",
    )
    parser.add_argument(
        "--keep-classes",
        type=int,
        metavar="N",
        help="of a long list, decode only the N classes that CLIP finds most like each image: "
        "faster, and the others get no pixel; default: all",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="of a device, for the weights and the network: where the usual one needs more, a "
        "slower one with the same results runs; default: no limit",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images that enter the network together; default: one for each device",
    )
    parser.add_argument(
        "--coco", type=as_path, metavar="FILE", help="also write all results as one COCO file"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="segment again what has a result already"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Segment every image; one that fails is reported, and the others are still segmented."""
    import jax
    from tqdm import tqdm

    from sammi_jax.files import write_json
    from sammi_jax.inference.classes import make_class_list
    from sammi_jax.inference.image_files import find_images
    from sammi_jax.inference.segment_files import FileSegmenter, coco_file, digest_model
    from sammi_jax.inference.segmenter import load

    classes = make_class_list(_class_names(args), args.background, args.threshold)
    tiles, batch_size = _tiles(args), args.batch_size
    for option, number in {"batch-size": batch_size, "keep-classes": args.keep_classes}.items():
        if number is not None and number < 1:
            raise SammiError(f"--{option} {number}: give at least 1")
    if args.memory is not None and not args.memory > 0:
        raise SammiError(f"--memory {args.memory:g}: give more than 0")
    files = find_images(args.images)
    folder = chosen_model(args)
    model = load(folder, keep_classes=args.keep_classes, memory_gib=args.memory)
    batch_size = min(len(files), batch_size or len(jax.local_devices()))
    model.check_memory(len(classes.texts), batch_size if tiles is None else 1)
    segmenter = FileSegmenter(model, classes, args.out, batch_size, tiles)
    segmenter.claim(digest_model(model, folder), args.overwrite)
    pending = files if args.overwrite else segmenter.pending(files)
    if len(pending) < len(files):
        print(f"{args.out}: {len(files) - len(pending)} of {len(files)} images have a result")
    failed = 0
    with tqdm(total=len(pending), unit="image", disable=None) as bar:
        for outcome in segmenter(pending):
            if outcome.error:
                failed += 1
                tqdm.write(f"sammi: error: {outcome.error}", file=sys.stderr)
            else:
                tqdm.write(f"{outcome.file.place}: {', '.join(map(str, outcome.written))}")
            bar.update()
    if args.coco is not None:
        write_json(args.coco, coco_file(files, args.out, classes.names))
        print(args.coco)
    return 1 if failed else 0


def _class_names(args: argparse.Namespace) -> list[str]:
    from sammi_jax.data.vocabulary import get_vocabulary
    from sammi_jax.text.vocabulary import parse_class_list

    if args.classes is not None:
        return parse_class_list(args.classes)
    vocabulary = get_vocabulary(args.vocabulary)
    texts: list[list[str]] = [[] for _ in vocabulary.class_titles]
    for text, index in zip(vocabulary.texts, vocabulary.merge, strict=True):
        texts[index].append(text)
    return ["; ".join(group) for group in texts]


def _tiles(args: argparse.Namespace):
    from sammi_jax.inference.tiles import TileGrid

    if args.tile is None:
        if args.overlap is not None:
            raise SammiError("--overlap belongs to --tile: give both, or neither")
        return None
    return TileGrid(args.tile, args.tile // 4 if args.overlap is None else args.overlap)
