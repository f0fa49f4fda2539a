"""Where a run's time goes: the start by its parts, and the share that trained what counts.

Time in which no process runs (a queue, a machine that is gone) is not counted, because nothing is
recorded of it; nor is what a killed process did after its last record.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

_CACHED = "/jax/compilation_cache/cache_hits"


class Startup:
    """Seconds from the start of the process to the end of its first step, by part.

    Args:
        age: seconds that the process has run so far. From here on the clock is a monotonic one,
            which goes on evenly when the date is corrected.

    Attributes:
        parts: seconds of each part, in order.
        cpu: CPU seconds of each part, over all threads. Other jobs on the machine add none.
        cached: programs that came from JAX's compilation cache instead of the compiler.
    """

    def __init__(self, age: float = 0.0):
        self.parts: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.cached = 0
        self._marked = time.monotonic() - age
        self._cpu_marked = 0.0 if age else time.process_time()
        jax.monitoring.register_event_listener(self._hear)

    def _hear(self, event: str, **_: object) -> None:
        self.cached += event == _CACHED

    def mark(self, part: str) -> None:
        """What ends here, and began at the previous mark, is this part."""
        now, cpu = time.monotonic(), time.process_time()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._marked
        self.cpu[part] = self.cpu.get(part, 0.0) + cpu - self._cpu_marked
        self._marked, self._cpu_marked = now, cpu

    @property
    def seconds(self) -> float:
        """From the start of the process to the last mark."""
        return sum(self.parts.values(), 0.0)

    def close(self) -> None:
        """Stop counting what comes from the cache."""
        jax.monitoring.unregister_event_listener(self._hear)

    def values(self) -> dict[str, float]:
        """For the log."""
        return {
            "start_s": self.seconds,
            "start_cpu_s": sum(self.cpu.values(), 0.0),
            **{f"start_{part}_s": seconds for part, seconds in self.parts.items()},
            **{f"start_{part}_cpu_s": seconds for part, seconds in self.cpu.items()},
            "start_cached": float(self.cached),
        }

    def describe(self) -> str:
        """One line."""
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.parts.items())
        return (
            f"first step after {self.seconds:.1f} s ({parts}; {sum(self.cpu.values()):.1f} s of "
            f"CPU, {self.cached} programs cached)"
        )


class Goodput:
    """The share of all processes' time that went into steps which are part of the result.

    Args:
        records: of the log so far, also those of steps that will be done again.
        start: the step that this process resumes from.
        startup: of this process; its time is spent, and trains nothing.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], start: int, startup: Startup):
        timed = [record for record in records if "spent_s" in record]
        self._spent = _last(timed, "spent_s")
        self._trained = _last((record for record in timed if record["step"] <= start), "trained_s")
        self._restarts = int(_last(timed, "restarts")) + bool(timed)
        self._began = time.monotonic() - startup.seconds

    def add(self, seconds: float) -> None:
        """Count seconds that were spent on steps."""
        self._trained += seconds

    def values(self) -> dict[str, float]:
        """For the log: sums over all processes so far, one after the other."""
        spent = self._spent + time.monotonic() - self._began
        return {
            "trained_s": self._trained,
            "spent_s": spent,
            "goodput": self._trained / spent,
            "restarts": float(self._restarts),
        }

    def describe(self) -> str:
        """One line."""
        now = self.values()
        return (
            f"goodput {now['goodput']:.1%}: {now['trained_s']:.0f} of {now['spent_s']:.0f} s were "
            f"steps that count ({self._restarts} restarts)"
        )


def _last(records: Iterable[Mapping[str, Any]], name: str) -> float:
    """The last value of a sum; 0 where there is none."""
    return max((record[name] for record in records), default=0.0)
