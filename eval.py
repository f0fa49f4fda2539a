"""Evaluate a model folder: ``python eval.py --config configs/NAME.py --checkpoint DIR
--datasets a,b --workdir DIR``.

Writes results.json and results.md (docs/evaluation.md). A CLIP folder is evaluated zero-shot: by
its cost map alone.
"""

import argparse
import sys
from pathlib import Path

from sammi_jax.cli.options import add_config_arguments
from sammi_jax.distributed import add_arguments, run_job
from sammi_jax.errors import SammiError
from sammi_jax.watchdog import EXIT_AGAIN


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: the process's)."""
    parser = argparse.ArgumentParser(
        description="Evaluate a CAT-Seg or SAM-MI model folder, or a CLIP one zero-shot.",
        epilog="Exit codes: 0 evaluated; 1 refused or stopped, with a message; 2 wrong use; "
        f"{EXIT_AGAIN} another process of the job was lost: the same command in all goes on.",
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        required=True,
        type=Path,
        help="a model folder, which brings its sizes, template and windows along; of a CLIP's "
        "folder template and windows are the configuration's",
    )
    parser.add_argument(
        "--datasets",
        metavar="NAMES",
        required=True,
        help="names with commas: prepared sets (ade20k_150 or ade20k_150/training; see 'sammi "
        "datasets list'), your own pictures (folder:PATH), OpenShapes (os48/val_unseen)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=Path,
        help="where 'sammi datasets prepare' put its sets; the other kinds need none",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        type=Path,
        help="for results.json, results.md and pictures; call again with the same to resume",
    )
    add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parse_arguments(arguments)
    return run_job("eval.py", options, lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> str:
    """The table of all data sets; everything is written as well."""
    from sammi_jax.config import to_dict
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.evaluation.evaluator import evaluate
    from sammi_jax.evaluation.report import config_digest, write_results
    from sammi_jax.experiment import SegmentConfig, load_config
    from sammi_jax.folder import weights_digest
    from sammi_jax.parallel import make_mesh
    from sammi_jax.pipeline import load_predictor

    config = load_config(options.config, options.set)
    if not isinstance(config.task, SegmentConfig):
        raise SammiError(f"{options.config}: is no segmentation experiment, so nothing to evaluate")
    names = [name.strip() for name in options.datasets.split(",") if name.strip()]
    if not names:
        raise SammiError("--datasets: names no data set")
    datasets = [
        open_dataset(name, config.eval.num_examples, data_dir=options.data_dir) for name in names
    ]
    mesh = make_mesh(config.mesh)
    predictor = load_predictor(options.checkpoint, config.task.model)
    identity = {
        "config": config_digest(config),
        "model": to_dict(predictor.config),
        "weights": weights_digest(options.checkpoint),
    }
    results, table = [], ""
    for dataset in datasets:
        results.append(evaluate(predictor, dataset, config.eval, mesh, options.workdir, identity))
        # after every set: what is done stays done
        table = write_results(
            results, options.checkpoint, config, predictor.config, options.workdir
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
