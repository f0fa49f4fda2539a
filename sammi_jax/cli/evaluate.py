"""``sammi eval``: evaluate a model folder on data sets."""

import argparse
from typing import Any

from sammi_jax.cli.options import (
    add_config_arguments,
    add_job_arguments,
    add_model_argument,
    chosen_model,
)
from sammi_jax.errors import SammiError
from sammi_jax.object_store import as_path

_DESCRIPTION = """\
Evaluate a CAT-Seg or SAM-MI model folder; a CLIP one zero-shot, by its cost map alone; or a
SAM's masks on the regions of OpenShapes. Writes results.json and results.md
(docs/evaluation.md)."""
_EXAMPLE = """\
Exit codes: 0 evaluated; 1 stopped by an error; 2 wrong use; 75 another process of the job was
lost: run the same command again in all of them.

example:
  sammi eval --config openshapes_catseg --model runs/catseg/model --datasets os48/val_unseen \\
      --workdir runs/catseg/eval"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="evaluate a model folder on data sets",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    add_model_argument(
        parser,
        "a model folder. It brings its own sizes, templates and windows; for a CLIP folder "
        "templates and windows are the configuration's",
    )
    parser.add_argument(
        "--datasets",
        metavar="NAMES",
        required=True,
        help="comma-separated names: prepared sets (ade20k_150 or ade20k_150/training; see 'sammi "
        "datasets list'), your own images (folder:PATH), OpenShapes (os48/val_unseen)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=as_path,
        help="where 'sammi datasets prepare' put its sets; the other kinds need none",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        type=as_path,
        help="for results.json, results.md and images; run again with the same one to resume",
    )
    add_job_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, as one process of a job where the flags say so."""
    from sammi_jax.parallel.run import run_job

    return run_job("sammi eval", args, lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> str:
    """The table of all data sets; everything is written as well."""
    from contextlib import ExitStack

    import jax

    from sammi_jax.config.experiment import SegmentConfig
    from sammi_jax.config.fields import to_dict
    from sammi_jax.config.files import config_digest, load_config
    from sammi_jax.data.catalogue import fingerprint, open_dataset
    from sammi_jax.evaluation.evaluator import evaluate
    from sammi_jax.evaluation.report import write_results
    from sammi_jax.evaluation.sam_masks import score_sam, write_sam_scores
    from sammi_jax.inference.towers import load_sam
    from sammi_jax.inference.zero_shot import load_predictor
    from sammi_jax.locks import exclusive
    from sammi_jax.parallel.mesh import make_mesh
    from sammi_jax.weights.model_folder import describe, weights_digest

    config = load_config(args.config, args.set)
    if not isinstance(config.task, SegmentConfig):
        raise SammiError(f"{args.config}: is no segmentation experiment, so nothing to evaluate")
    folder = chosen_model(args)
    names = [name.strip() for name in args.datasets.split(",") if name.strip()]
    if not names:
        raise SammiError("--datasets: names no data set")
    datasets = [
        open_dataset(name, config.eval.num_examples, data_dir=args.data_dir) for name in names
    ]
    kind = describe(folder).kind
    with ExitStack() as stack:
        if jax.process_index() == 0:  # before the work: this also finds that nothing can be written
            stack.enter_context(exclusive(args.workdir / ".eval.lock", args.workdir))
        if kind == "sam":
            sam = load_sam(folder)
            records = [score_sam(sam, dataset) for dataset in datasets]
            return write_sam_scores(records, folder, args.workdir)
        mesh = make_mesh(config.mesh)
        predictor = load_predictor(
            folder, config.task.model, config.eval.compute_dtype, config.eval.keep_classes
        )
        identity = {
            "config": config_digest(config),
            "model": to_dict(predictor.config),
            "weights": weights_digest(folder),
        }
        results, table = [], ""
        for dataset in datasets:
            data = {"data": fingerprint(dataset)}
            results.append(
                evaluate(predictor, dataset, config.eval, mesh, args.workdir, identity | data)
            )
            # after every set: what is done stays done
            table = write_results(results, folder, config, predictor.config, args.workdir)
        return table
