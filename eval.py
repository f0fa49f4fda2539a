"""Evaluate a model folder: ``python eval.py --config configs/NAME.py --checkpoint DIR
--datasets a,b --workdir DIR``.

Writes results.json and results.md. A CLIP folder is evaluated zero-shot: by its cost map alone.
"""

import argparse
import sys
from pathlib import Path

from sammi_jax.errors import SammiError


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: the process's)."""
    parser = argparse.ArgumentParser(
        description="Evaluate a CAT-Seg or SAM-MI model folder, or a CLIP one zero-shot."
    )
    parser.add_argument("--config", required=True, help="a Python file that defines `config`")
    parser.add_argument("--checkpoint", required=True, type=Path, help="a model folder")
    parser.add_argument(
        "--datasets", required=True, help="names with commas, as in os48/val_seen,os48/val_unseen"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="where prepared data sets lie; OpenShapes needs none"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="for results.json, results.md")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=value",
        help="change one field of the configuration; may be given several times",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    options = parse_arguments(arguments)
    from sammi_jax.data.catalogue import open_dataset
    from sammi_jax.evaluation.evaluator import evaluate
    from sammi_jax.evaluation.report import write_results
    from sammi_jax.experiment import SegmentConfig, load_config
    from sammi_jax.pipeline import load_predictor

    try:
        config = load_config(options.config, options.set)
        if not isinstance(config.task, SegmentConfig):
            raise SammiError(
                f"{options.config}: is no segmentation experiment, so nothing to evaluate"
            )
        names = [name.strip() for name in options.datasets.split(",") if name.strip()]
        datasets = [open_dataset(name, config.eval.num_examples) for name in names]
        predictor = load_predictor(options.checkpoint, config.task.model)
        results = [evaluate(predictor, dataset, config.eval.batch_size) for dataset in datasets]
        print(write_results(results, options.checkpoint, config, options.workdir))
    except SammiError as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
