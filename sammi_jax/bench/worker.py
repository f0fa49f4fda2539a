"""A process that computes one side of a benchmark when it is told to.

Each side has a process of its own, so that neither's threads and memory disturb the other's, and
both are pinned to one core. They never run at the same time.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from sammi_jax.errors import SammiError, one_line

Side = Literal["ours", "peer"]
TORCH_COMMAND = "pip install 'sammi_jax[convert]'"
_MATRIX = 1536  # side of the matrices that the machine's rate is measured with


class Worker:
    """The other end: asks a side's process and waits for its answer.

    Raises:
        SammiError: where the process failed or was ended (for lack of memory, mostly).
    """

    def __init__(self, side: Side, case: str, size: str, folder: Path, core: int | None):
        self._side, self._case = side, case
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, side, case, size, str(folder), core)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def ask(self, what: str) -> Any:
        """Send a request (a name in `_REQUESTS`) and return the answer."""
        self._connection.send(what)
        try:
            problem, answer = self._connection.recv()
        except EOFError:
            raise SammiError(
                f"bench {self._case}: the process of {self._side} was ended while it did "
                f"{what!r}; was there too little memory?"
            ) from None
        if problem is not None:
            raise SammiError(f"bench {self._case}, {self._side}: {problem}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()


@contextmanager
def workers(case: str, size: str, folder: Path, core: int | None) -> Iterator[dict[Side, Worker]]:
    """Both sides' processes, ended at the end."""
    both: dict[Side, Worker] = {}
    try:
        for side in ("ours", "peer"):
            both[side] = Worker(side, case, size, folder, core)
        yield both
    finally:
        for worker in both.values():
            worker.close()


def _work(
    connection: Connection, side: Side, case: str, size: str, folder: str, core: int | None
) -> None:
    # Before JAX and torch are imported: both count their threads by the cores that they may use.
    if core is not None:
        os.sched_setaffinity(0, {core})
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    requests = _Requests(side, case, size, Path(folder))
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        try:
            connection.send((None, getattr(requests, what)()))
        except Exception as error:  # whatever a library raises is told in one line
            text = str(error) if isinstance(error, SammiError) else one_line(error)
            connection.send((f"{type(error).__name__}: {text}", None))


class _Requests:
    """What a process can be asked for."""

    def __init__(self, side: Side, case: str, size: str, folder: Path):
        self._side, self._case, self._size, self._folder = side, case, size, folder

    def load(self) -> float:
        """Read weights and inputs; the peak memory so far, in MiB."""
        from safetensors.numpy import load_file

        from sammi_jax.bench.cases import CASES, SIZES

        if self._side == "peer":
            import torch

            torch.set_num_threads(1)
        case, sizes = CASES[self._case], SIZES[self._size]
        weights = self._folder / f"{self._side}.safetensors"
        params = load_file(weights) if weights.exists() else {}
        inputs = read_arrays(self._folder / "inputs.npz")
        make = case.ours if self._side == "ours" else case.peer
        self._ready = make(sizes, params, inputs)
        return _peak_memory()

    def first(self) -> dict[str, float]:
        """Run for the first time, compilation included, and write the outputs."""
        times, outputs = _timed(self._ready.run)
        write_arrays(self._folder / f"{self._side}.npz", outputs)
        return times

    def run(self) -> dict[str, float]:
        """Run once more."""
        return _timed(self._ready.run)[0]

    def flops(self) -> float | None:
        """FLOPs of a run."""
        return None if self._ready.flops is None else self._ready.flops()

    def memory(self) -> float:
        """Peak memory of the process so far, in MiB."""
        return _peak_memory()

    def matmul_rate(self) -> float:
        """FLOPs a CPU second of a large product of float32 matrices, the best of five."""
        import numpy as np

        values = np.random.default_rng(0).standard_normal((2, _MATRIX, _MATRIX), np.float32)
        if self._side == "ours":
            import jax

            left, right = jax.device_put(tuple(values))
            product = jax.jit(lambda a, b: a @ b)
            multiply = lambda: product(left, right).block_until_ready()  # noqa: E731
        else:
            import torch

            left, right = torch.from_numpy(values[0]), torch.from_numpy(values[1])
            multiply = lambda: left @ right  # noqa: E731
        multiply()
        return 2.0 * _MATRIX**3 / min(_timed(multiply)[0]["cpu_s"] for _ in range(5))


def write_arrays(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name."""
    import numpy as np

    np.savez(file, **arrays)


def read_arrays(file: Path) -> dict[str, Any]:
    """Read what `write_arrays` wrote."""
    import numpy as np

    with np.load(file) as arrays:
        return dict(arrays)


def _timed(run: Any) -> tuple[dict[str, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }, result


def _peak_memory() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
