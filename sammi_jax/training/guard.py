"""Ends a run whose loss is not finite or explodes, before such a state is saved."""

from collections import deque
from statistics import median

import jax

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.errors import SammiError
from sammi_jax.training.state import Metrics

MEDIAN_WINDOW = 100  # a loss is compared with the median of this many losses before it,
MEDIAN_MIN = 20  # once there are so many


class Guard:
    """Checks every step's loss, several steps at a time, so that no step waits for the host."""

    def __init__(self, config: TrainConfig):
        self._config = config
        self._pending: list[tuple[int, Metrics]] = []
        self._losses: deque[float] = deque(maxlen=MEDIAN_WINDOW)

    def add(self, step: int, metrics: Metrics) -> None:
        """Remember the metrics of a step, without waiting until they are computed."""
        self._pending.append((step, {name: metrics[name] for name in ("loss", "finite")}))

    def check(self) -> None:
        """Check all steps since the last call; to be called before their state is saved.

        Raises:
            SammiError: a loss, gradient or update is not finite, or the loss exploded.
        """
        steps = [step for step, _ in self._pending]
        values = jax.device_get([metrics for _, metrics in self._pending])
        self._pending.clear()
        for step, value in zip(steps, values, strict=True):
            self._check_one(step, float(value["loss"]), bool(value["finite"]))

    def _check_one(self, step: int, loss: float, finite: bool) -> None:
        batch = f"batch {step - 1} of seed {self._config.seed}"
        if not finite:
            raise SammiError(
                f"step {step}: the loss is not finite, on {batch}; all checkpoints are from "
                "earlier steps; lower optim.peak_lr, or look at that batch"
            )
        limit = self._config.max_loss_ratio
        usual = median(self._losses) if len(self._losses) >= MEDIAN_MIN else 0.0
        if limit is not None and usual > 0 and loss > limit * usual:
            raise SammiError(
                f"step {step}: the loss exploded to {loss:.4g} from a median of {usual:.4g}, on "
                f"{batch}; all checkpoints are from earlier steps; lower optim.peak_lr, or raise "
                "max_loss_ratio"
            )
        self._losses.append(loss)
