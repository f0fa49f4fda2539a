"""``sammi datasets``: list, prepare and examine data sets."""

import argparse
from typing import TYPE_CHECKING, Any

from sammi_jax.errors import SammiError
from sammi_jax.object_store import AnyPath, as_path, exists, local_path

if TYPE_CHECKING:
    from sammi_jax.data.prepare.layout import Layout
    from sammi_jax.data.vocabulary import Vocabulary

_IMAGES_A_PROCESS = 1000  # that are examined: for fewer, starting another one takes longer
_DESCRIPTION = """\
The data sets that this package knows: the six standard ones, COCO-Stuff, and the 22 of MESS.

None is downloaded. 'show NAME' says where its owner offers it and which folders are expected;
'prepare NAME' turns these into a folder that TFDS reads. OpenShapes (os48/val_unseen, ...) is a
procedural data set, and 'folder:PATH' reads a user folder (images/, labels/, classes.txt): neither
needs preparation. 'draw NAME' writes scenes of OpenShapes as a user folder, to try things with."""
_EPILOG = """\
examples:
  sammi datasets list --data-dir data
  sammi datasets prepare ade20k_150 --source ADEChallengeData2016 --data-dir data
  sammi datasets draw os48/val_seen --count 20 --out scenes"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "datasets",
        help="list, prepare and examine data sets",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.error("give an action: list, show or prepare"))
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    listing = _add_action(actions, "list", "one line for each known set", "list --data-dir data")
    listing.set_defaults(run=_list)
    show = _add_action(
        actions,
        "show",
        "describe one set, and check it if it is prepared",
        "show ade20k_150 --data-dir data",
    )
    show.add_argument("name", metavar="NAME", help="a known set, or folder:PATH")
    show.set_defaults(run=_show)
    prepare = _add_action(
        actions,
        "prepare",
        "write the owner's files as a TFDS folder; run it again to resume",
        "prepare ade20k_150 --source ADEChallengeData2016 --data-dir data",
    )
    prepare.add_argument("name", metavar="NAME", help="of 'sammi datasets list'")
    prepare.add_argument(
        "--source", metavar="DIR", type=local_path, required=True, help="the owner's files"
    )
    prepare.add_argument(
        "--split",
        metavar="SPLIT",
        action="append",
        default=[],
        help="only this split; may be given several times",
    )
    prepare.add_argument(
        "--allow-incomplete", action="store_true", help="accept a source that lacks files"
    )
    prepare.add_argument(
        "--processes",
        metavar="N",
        type=int,
        help="how many work at the same time (default: one for each CPU, at most 16); the result "
        "does not depend on it",
    )
    prepare.set_defaults(run=_prepare)
    for action in (listing, show, prepare):
        action.add_argument(
            "--data-dir",
            metavar="DIR",
            type=as_path,
            required=action is prepare,
            help="folder of the prepared sets",
        )
    draw = _add_action(
        actions,
        "draw",
        "write scenes of OpenShapes as a user folder",
        "draw os48/val_seen --count 20 --out scenes",
    )
    draw.add_argument("name", metavar="NAME", help="such as os48/train, os48/val_seen, os168/train")
    draw.add_argument("--count", metavar="N", type=int, required=True, help="the first N scenes")
    draw.add_argument(
        "--out", metavar="DIR", type=as_path, required=True, help="the folder to write; must be new"
    )
    draw.set_defaults(run=_draw)


def _add_action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  sammi datasets {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _draw(args: argparse.Namespace) -> int:
    from sammi_jax.data.catalogue import dataset_names, open_dataset
    from sammi_jax.data.user_folder import write_user_folder

    if args.count < 1:
        raise SammiError(f"--count {args.count}: give at least 1")
    if args.name not in dataset_names():
        names = ", ".join(dataset_names())
        raise SammiError(f"{args.name}: only OpenShapes can be drawn; give one of {names}")
    dataset = open_dataset(args.name, args.count)
    if dataset.merge != tuple(range(len(dataset.class_names))):
        raise SammiError(f"{args.name}: several texts share a class, which a user folder can't say")
    write_user_folder(args.out, dataset.source, dataset.class_names)
    print(f"{args.out}: {args.count} scenes, {len(dataset.class_names)} classes")
    return 0


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
    from sammi_jax.data.catalogue import USER_FOLDER, open_dataset
    from sammi_jax.data.prepare.known_sets import get_layout
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.data.vocabulary import get_vocabulary, vocabulary_names

    if args.name.startswith(USER_FOLDER):
        return _examine(open_dataset(args.name))
    if args.name not in vocabulary_names():
        open_dataset(args.name)  # raises an error that gives the nearest name
        raise SammiError(
            f"{args.name}: OpenShapes needs no preparation; 'sammi datasets draw {args.name}' "
            "writes its scenes as files"
        )
    _print_set(get_vocabulary(args.name), get_layout(args.name))
    folder = args.data_dir and prepared_folder(args.data_dir, args.name)
    if folder is None or not exists(folder):
        print(f"\nnot prepared{f' in {args.data_dir}' if args.data_dir else ''}")
        return 0
    return _examine_prepared(args.name, args.data_dir)


def _prepare(args: argparse.Namespace) -> int:
    from sammi_jax.data.prepare.pool import default_processes
    from sammi_jax.data.prepare.write import prepare

    processes = default_processes() if args.processes is None else args.processes
    if processes < 1:
        raise SammiError(f"--processes {processes}: give at least 1")
    folder = prepare(
        args.name,
        args.source,
        args.data_dir,
        splits=args.split,
        allow_incomplete=args.allow_incomplete,
        processes=processes,
    )
    print(f"{folder}: prepared")
    return _examine_prepared(args.name, args.data_dir, processes)


def _print_set(vocabulary: "Vocabulary", layout: "Layout") -> None:
    print(f"{vocabulary.name}: {vocabulary.title} ({vocabulary.column})")
    if vocabulary.domain:
        print(f"  domain    MESS, {vocabulary.domain}")
    print(f"  home      {vocabulary.home}")
    print(f"  licence   {vocabulary.licence}")
    print(f"  names     {vocabulary.source}; sha256 {vocabulary.sha256[:16]}")
    texts = f", named by {len(vocabulary.texts)} texts"
    more = texts if len(vocabulary.texts) != vocabulary.num_classes else ""
    print(f"  classes   {vocabulary.num_classes}{more}, ignored value {vocabulary.ignore_index}")
    print(f"  labels    {vocabulary.label_format}")
    for split in layout.splits:
        print(f"  split     {split.name}: {split.counts[0]:,} images")
        for what, templates in (("image", layout.image), ("label", layout.label)):
            paths = [path.replace("{split}", split.name) for path in templates]
            print(f"    {what}   {layout.root}/{f' or {layout.root}/'.join(paths)}")
    print("  texts     " + "; ".join(vocabulary.texts))


def _examine_prepared(name: str, data_dir: AnyPath, processes: int = 1) -> int:
    from sammi_jax.data.catalogue import find_prepared, open_dataset
    from sammi_jax.data.prepare.descriptions import split_lengths
    from sammi_jax.files import read_json

    folder = find_prepared(name, data_dir)
    if not read_json(folder / "metadata.json").get("complete"):
        print(f"\n{folder}: prepared from an incomplete source")
    codes = [
        _examine(open_dataset(f"{name}/{split}", data_dir=data_dir), processes)
        for split in split_lengths(folder)
    ]
    _print_group(name, data_dir)
    return max(codes)


def _print_group(name: str, data_dir: AnyPath) -> None:
    """Print the mean over the tasks of a group: PAXRay-4 is published as that of its four tasks."""
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.data.prepare.doctor import examine
    from sammi_jax.data.prepare.report import random_line
    from sammi_jax.data.prepare.write import prepared_folder
    from sammi_jax.data.vocabulary import get_vocabulary, tasks_of

    tasks = tasks_of(name)
    if len(tasks) == 1:
        return
    there = [task for task in tasks if exists(prepared_folder(data_dir, task))]
    column = get_vocabulary(name).column
    if len(there) < len(tasks):
        print(f"\n{column}: {len(there)} of its {len(tasks)} tasks are prepared")
        return
    opened: list[Any] = [open_dataset(task, data_dir=data_dir) for task in tasks]
    scores = [examine(d.source, d.num_classes, d.ignore_label).random_miou for d in opened]
    mean = sum(scores) / len(scores)
    print(f"\n{column}, mean of {len(tasks)} tasks")
    print(random_line(mean, get_vocabulary(name).random_miou))


def _examine(dataset: Any, processes: int = 1) -> int:
    """Examine a set and print the report; the exit code is 1 if it cannot be evaluated."""
    from sammi_jax.data.prepare.doctor import examine
    from sammi_jax.data.prepare.report import report_lines
    from sammi_jax.data.vocabulary import get_vocabulary, tasks_of, vocabulary_names

    report = examine(
        dataset.source,
        dataset.num_classes,
        dataset.ignore_label,
        progress=True,
        processes=min(processes, -(-len(dataset.source) // _IMAGES_A_PROCESS)),
    )
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
