"""AdamW (or Muon for matrices) in groups, over the trainable parameters only.

Frozen parameters are left out: to give their updates the value zero would double the work, and the
gradient norm would be wrong. Groups are those of CAT-Seg (docs/catseg.md part e).
"""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import optax
import optax.contrib

from sammi_jax.config.experiment import OptimConfig
from sammi_jax.errors import SammiError

# Muon's Newton-Schulz coefficients (Keller Jordan's), given for each of the five steps: optax then
# runs a loop, where its default unrolls the steps, and 60 matrices take 15 s more to compile.
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from zero, then half a cosine to zero at ``steps``.

    Raises:
        SammiError: the warm-up leaves no step.
    """
    if config.warmup_steps >= steps:
        raise SammiError(
            f"steps={steps} is not above optim.warmup_steps={config.warmup_steps}: give more steps "
            "or a shorter warm-up"
        )
    if config.warmup_steps == 0:
        return optax.cosine_decay_schedule(config.peak_lr, steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, config.warmup_steps, steps)


def is_norm(path: str, paths: Mapping[str, Any]) -> bool:
    """Whether a parameter belongs to a normalization layer: one that has a ``scale``."""
    return path.rpartition("/")[0] + "/scale" in paths


def make_optimizer(
    config: OptimConfig, steps: int, lr_scales: Mapping[str, float]
) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with one group for each learning rate and decay.

    Args:
        config: learning rate, decay, clipping and moments.
        steps: of the whole training.
        lr_scales: factor of the learning rate of every trainable parameter, by path.

    Raises:
        SammiError: the warm-up leaves no step.
    """
    schedule = make_schedule(config, steps)
    groups = {
        path: (scale, 0.0 if is_norm(path, lr_scales) else config.weight_decay)
        for path, scale in lr_scales.items()
    }
    labels = {path: f"lr{scale:g}_decay{decay:g}" for path, (scale, decay) in groups.items()}
    transforms: dict[Hashable, optax.GradientTransformation] = {
        labels[path]: _rule(config, schedule, *groups[path]) for path in groups
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.partition(transforms, labels)
    )


def _rule(
    config: OptimConfig, schedule: optax.Schedule, scale: float, decay: float
) -> optax.GradientTransformation:
    """The update of one group."""

    def rate(step: Any) -> Any:
        return scale * schedule(step)

    if config.muon_ratio is None:
        return optax.adamw(rate, b2=config.b2, weight_decay=decay)
    return optax.contrib.muon(
        lambda step: config.muon_ratio * rate(step),
        ns_coeffs=NEWTON_SCHULZ,
        weight_decay=decay,
        adam_b2=config.b2,
        adam_weight_decay=decay,
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=_matrix_axes,
    )


def _matrix_axes(params: Any) -> Any:
    """The matrix axes of each parameter that Muon updates; None for those of AdamW.

    A three-dimensional kernel belongs to a `Stack`: its first axis counts the layers.
    """

    def axes(path: Any, value: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if not path[-1].key.endswith("/kernel") or value.ndim not in (2, 3):
            return None
        return optax.contrib.MuonDimensionNumbers(value.ndim - 2, value.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
