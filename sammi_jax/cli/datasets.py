"""``sammi datasets``: what data sets there are, and preparing and examining them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sammi_jax.errors import SammiError

if TYPE_CHECKING:
    from sammi_jax.data.prepare.layout import Layout
    from sammi_jax.data.vocabulary import Vocabulary

_DESCRIPTION = """\
The data sets that this package knows: the six standard ones, COCO-Stuff, and the 22 of MESS.

None is downloaded. 'show NAME' tells where the owner offers it and which folders are expected;
'prepare NAME' turns them into a folder that TFDS reads. OpenShapes (os48/val_unseen, ...) is drawn
when it is asked for, and 'folder:PATH' opens your own pictures: neither is prepared."""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "datasets",
        help="list, prepare and examine data sets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.error("which? list, show or prepare"))
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    listing = actions.add_parser("list", help="a line on each known set")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="all about one set, examined if it is prepared")
    show.add_argument("name", metavar="NAME", help="a known set, or folder:PATH")
    show.set_defaults(run=_show)
    prepare = actions.add_parser(
        "prepare", help="owner's files -> TFDS folder; call again to resume"
    )
    prepare.add_argument("name", metavar="NAME", help="of 'sammi datasets list'")
    prepare.add_argument(
        "--source", metavar="DIR", type=Path, required=True, help="the owner's files"
    )
    prepare.add_argument(
        "--split", metavar="SPLIT", action="append", default=[], help="only this one; repeatable"
    )
    prepare.add_argument(
        "--allow-incomplete", action="store_true", help="prepare what there is of a partial copy"
    )
    prepare.set_defaults(run=_prepare)
    for action in (listing, show, prepare):
        action.add_argument(
            "--data-dir",
            metavar="DIR",
            type=Path,
            required=action is prepare,
            help="where prepared sets lie",
        )


def _list(args: argparse.Namespace) -> int:
    from sammi_jax.data.prepare.known_sets import get_layout
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_names

    print(f"{'name':24}{'classes':>8}{'images':>8}  {'prepared':10}licence")
    for name in vocabulary_names():
        vocabulary, split = get_vocabulary(name), get_layout(name).splits[0]
        prepared = args.data_dir is not None and prepared_folder(args.data_dir, name).is_dir()
        images = f"{split.counts[0]:,}"
        print(
            f"{name:24}{vocabulary.num_classes:>8}{images:>8}  {'yes' if prepared else '-':10}"
            f"{vocabulary.licence}"
        )
    return 0


def _show(args: argparse.Namespace) -> int:
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.data.prepare.known_sets import get_layout
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_names

    if args.name.startswith("folder:"):
        return _examine(open_dataset(args.name))
    if args.name not in vocabulary_names():
        open_dataset(args.name)  # names the nearest one
        raise SammiError(f"{args.name}: drawn when it is asked for; docs/openshapes.md shows it")
    _print_set(get_vocabulary(args.name), get_layout(args.name))
    folder = args.data_dir and prepared_folder(args.data_dir, args.name)
    if folder is None or not folder.is_dir():
        print(f"\nnot prepared{f' in {args.data_dir}' if args.data_dir else ''}")
        return 0
    return _examine_prepared(args.name, args.data_dir)


def _prepare(args: argparse.Namespace) -> int:
    from sammi_jax.data.prepare.write import prepare

    folder = prepare(
        args.name,
        args.source,
        args.data_dir,
        splits=args.split,
        allow_incomplete=args.allow_incomplete,
    )
    print(f"{folder}: prepared")
    return _examine_prepared(args.name, args.data_dir)


def _print_set(vocabulary: "Vocabulary", layout: "Layout") -> None:
    print(f"{vocabulary.name}: {vocabulary.title} ({vocabulary.column})")
    if vocabulary.domain:
        print(f"  domain    MESS, {vocabulary.domain}")
    print(f"  home      {vocabulary.home}")
    print(f"  licence   {vocabulary.licence}")
    print(f"  names     {vocabulary.source}; sha256 {vocabulary.sha256[:16]}")
    texts = f" asked for with {len(vocabulary.texts)} texts"
    more = texts if len(vocabulary.texts) != vocabulary.num_classes else ""
    print(f"  classes   {vocabulary.num_classes}{more}, ignored value {vocabulary.ignore_index}")
    print(f"  labels    {vocabulary.label_format}")
    for split in layout.splits:
        print(f"  split     {split.name}: {split.counts[0]:,} images")
        for what, templates in (("image", layout.image), ("label", layout.label)):
            paths = [path.replace("{split}", split.name) for path in templates]
            print(f"    {what}   {layout.root}/{f' or {layout.root}/'.join(paths)}")
    print("  texts     " + "; ".join(vocabulary.texts))


def _examine_prepared(name: str, data_dir: Path) -> int:
    from sammi_jax.data.catalogue import find_prepared, open_dataset
    from sammi_jax.data.prepare.records import split_names
    from sammi_jax.files import read_json

    folder = find_prepared(name, data_dir)
    if not read_json(folder / "metadata.json")["complete"]:
        print(f"\n{folder}: made of an incomplete source")
    codes = [
        _examine(open_dataset(f"{name}/{split}", data_dir=data_dir))
        for split in split_names(folder)
    ]
    _print_group(name, data_dir)
    return max(codes)


def _print_group(name: str, data_dir: Path) -> None:
    """PAXRay-4 is published as the average over its four tasks."""
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.data.prepare.doctor import examine
    from sammi_jax.data.prepare.report import random_line
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.data.vocabulary import get_vocabulary, tasks_of

    tasks = tasks_of(name)
    if len(tasks) == 1:
        return
    there = [task for task in tasks if prepared_folder(data_dir, task).is_dir()]
    column = get_vocabulary(name).column
    if len(there) < len(tasks):
        print(f"\n{column}: {len(there)} of its {len(tasks)} tasks are prepared")
        return
    opened: list[Any] = [open_dataset(task, data_dir=data_dir) for task in tasks]
    scores = [examine(d.source, d.num_classes, d.ignore_label).random_miou for d in opened]
    mean = sum(scores) / len(scores)
    print(f"\n{column}, mean of {len(tasks)} tasks")
    print(random_line(mean, get_vocabulary(name).random_miou))


def _examine(dataset: Any) -> int:
    """Print the doctor's report; the exit code says whether the set can be evaluated."""
    from sammi_jax.data.prepare.doctor import examine
    from sammi_jax.data.prepare.report import report_lines
    from sammi_jax.data.vocabulary import get_vocabulary, tasks_of, vocabulary_names

    report = examine(dataset.source, dataset.num_classes, dataset.ignore_label, progress=True)
    name = dataset.name.partition("/")[0]
    if name in vocabulary_names():
        vocabulary = get_vocabulary(name)
        alone = len(tasks_of(name)) == 1
        titles = vocabulary.class_titles
        published = vocabulary.random_miou if alone else None
    else:
        titles, published = dataset.class_names, None
    print(f"\n{dataset.name}")
    print("\n".join(report_lines(report, titles, published)))
    return 0 if report.sound else 1
