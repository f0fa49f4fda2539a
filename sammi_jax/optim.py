"""AdamW in groups, over the trainable parameters only.

Frozen parameters never enter: partitioning everything and zeroing most of it costs twice the
work and gives a wrong gradient norm (architecture.md 1.3). Rules: CAT-Seg's (catseg.md part e).
"""

from collections.abc import Mapping
from typing import Any

import optax

from sammi_jax.experiment import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from zero, then half a cosine to zero at ``steps``."""
    if config.warmup_steps == 0:
        return optax.cosine_decay_schedule(config.peak_lr, steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, config.warmup_steps, steps)


def is_norm(path: str, paths: Mapping[str, Any]) -> bool:
    """Whether a parameter belongs to a normalisation layer: it or its neighbour is a ``scale``."""
    return path.rpartition("/")[0] + "/scale" in paths


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, lr_scales: Mapping[str, float]
) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with one group for each learning rate and decay.

    Args:
        config: decay, clipping and moments.
        schedule: the learning rate of a parameter whose scale is 1.
        lr_scales: factor of the learning rate of every trainable parameter, by path.
    """
    groups = {
        path: (scale, 0.0 if is_norm(path, lr_scales) else config.weight_decay)
        for path, scale in lr_scales.items()
    }
    labels = {path: f"lr{scale:g}_decay{decay:g}" for path, (scale, decay) in groups.items()}
    transforms = {
        labels[path]: optax.adamw(
            lambda step, scale=scale: scale * schedule(step), b2=config.b2, weight_decay=decay
        )
        for path, (scale, decay) in groups.items()
    }
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), optax.partition(transforms, labels)
    )
