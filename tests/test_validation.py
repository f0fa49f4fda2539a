"""Evaluation inside of training gives what `eval.py` gives for the model of that step."""

from dataclasses import replace

import jax
import pytest

from sammi_jax.config.experiment import EvalConfig, SegmentConfig, TrainConfig
from sammi_jax.config.model import SEGMENTER_SIZES
from sammi_jax.data.catalogue import open_dataset
from sammi_jax.errors import SammiError
from sammi_jax.evaluation.evaluator import evaluate
from sammi_jax.inference.segmenter import load
from sammi_jax.parallel.mesh import make_mesh
from sammi_jax.training.tasks import make_task
from sammi_jax.training.validation import Validation

CONFIG = TrainConfig(
    task=SegmentConfig(model=SEGMENTER_SIZES["openshapes"]),
    eval=EvalConfig(batch_size=8, num_examples=8, panels=1),
    steps=30,
    batch_size=8,
    checkpoint_every=10,
    validation=("os48/val_unseen",),
    validate_every=20,
)


def test_scores_are_those_of_the_exported_model(tmp_path):
    task, mesh = make_task(CONFIG), make_mesh(CONFIG.mesh)
    validation = Validation(task, CONFIG, mesh, tmp_path)
    assert [step for step in range(1, 31) if validation.due(step)] == [20, 30]
    params = task.initial_params(0)
    with jax.set_mesh(mesh):
        first = validation(params, 20)
        other = {path: value * 1.5 for path, value in params.items()}
        second = validation(other, 30)
    assert first != second
    task.export(other, tmp_path / "model", 30)
    dataset = open_dataset("os48/val_unseen", 8)
    record = evaluate(
        load(tmp_path / "model"), dataset, CONFIG.eval, mesh, tmp_path / "alone", {"model": 2}
    )
    for name in ("miou", "seen_miou", "unseen_miou"):
        assert second[f"{name}/os48/val_unseen"] == record[name]
    assert second["miou"] == record["miou"]
    assert len(list((tmp_path / "validation" / "00000030").rglob("*.png"))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validate_every": 15}, "validate_every=15 is not a multiple of checkpoint_every=10"),
        ({"validation": ("os48/val_unsen",)}, "did you mean os48/val_unseen"),
    ],
)
def test_what_cannot_be_validated(tmp_path, change, message):
    config = replace(CONFIG, **change)
    with pytest.raises(SammiError, match=message):
        Validation(make_task(config), config, make_mesh(config.mesh), tmp_path)
