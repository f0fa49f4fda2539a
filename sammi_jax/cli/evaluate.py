"""``sammi eval``: evaluate a model folder on data sets."""

import argparse
from pathlib import Path
from typing import Any

from sammi_jax.cli.options import add_config_arguments, add_job_arguments
from sammi_jax.errors import SammiError

_DESCRIPTION = """\
Evaluate a CAT-Seg or SAM-MI model folder, or a CLIP one zero-shot, by its cost map alone. Writes
results.json and results.md (docs/evaluation.md)."""
_EPILOG = """\
Exit codes: 0 evaluated; 1 stopped by an error; 2 wrong use; 75 a process of the job was lost: run
the same command again in all processes to resume.

example:
  sammi eval --config openshapes_catseg --model runs/catseg/model --datasets os48/val_unseen \\
      --workdir runs/catseg/eval"""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "eval",
        help="evaluate a model folder on data sets",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="DIR",
        required=True,
        type=Path,
        help="a model folder. Sizes, template and windows are the folder's own; with a CLIP folder "
        "template and windows are the configuration's",
    )
    parser.add_argument(
        "--datasets",
        metavar="NAMES",
        required=True,
        help="comma-separated names: prepared sets (ade20k_150 or ade20k_150/training; see 'sammi "
        "datasets list'), user folders (folder:PATH), OpenShapes (os48/val_unseen)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="folder of the sets that 'sammi datasets prepare' made; other sets do not need it",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        type=Path,
        help="folder for results.json, results.md and images; run again with the same to resume",
    )
    add_job_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, as one process of a job where the flags say so."""
    from sammi_jax.parallel.run import run_job

    return run_job("sammi eval", args, lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> str:
    """Evaluate and write everything; the table of all data sets."""
    from sammi_jax.config.experiment import SegmentConfig
    from sammi_jax.config.fields import to_dict
    from sammi_jax.config.files import load_config
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.evaluation.evaluator import evaluate
    from sammi_jax.evaluation.report import config_digest, write_results
    from sammi_jax.inference.segmenter import load_predictor
    from sammi_jax.parallel.mesh import make_mesh
    from sammi_jax.weights.model_folder import weights_digest

    config = load_config(args.config, args.set)
    if not isinstance(config.task, SegmentConfig):
        raise SammiError(
            f"{args.config}: is not a segmentation experiment, so it has nothing to evaluate"
        )
    names = [name.strip() for name in args.datasets.split(",") if name.strip()]
    if not names:
        raise SammiError("--datasets: give at least one name, such as os48/val_unseen")
    datasets = [
        open_dataset(name, config.eval.num_examples, data_dir=args.data_dir) for name in names
    ]
    mesh = make_mesh(config.mesh)
    predictor = load_predictor(args.model, config.task.model)
    identity = {
        "config": config_digest(config),
        "model": to_dict(predictor.config),
        "weights": weights_digest(args.model),
    }
    results, table = [], ""
    for dataset in datasets:
        results.append(evaluate(predictor, dataset, config.eval, mesh, args.workdir, identity))
        # Written after every set, so that an interruption loses none that is done.
        table = write_results(results, args.model, config, predictor.config, args.workdir)
    return table
