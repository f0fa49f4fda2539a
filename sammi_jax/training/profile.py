"""JAX's profile of a window of steps."""

import jax

from sammi_jax.errors import SammiError
from sammi_jax.object_store import AnyPath, is_bucket
from sammi_jax.training.state import Metrics


class Profile:
    """JAX's profile of steps ``first`` to ``last``, for TensorBoard or xprof."""

    def __init__(self, folder: AnyPath, steps: tuple[int, ...] | None):
        self._folder, self._running = folder, False
        if steps is not None and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise SammiError(
                f"profile_steps={steps}: give the first and the last step, such as (10, 12)"
            )
        if steps is not None and is_bucket(folder):
            raise SammiError(
                f"{folder}: a profile cannot be written to a bucket; leave profile_steps out, or "
                "train in a folder of this machine"
            )
        self._first, self._last = steps or (0, 0)

    def before(self, step: int) -> None:
        """Start the profile, where this is the first step of the window."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        """Write the profile, where this is the last step of the window, once that is computed."""
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Write the profile, where the run ends within the window."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
