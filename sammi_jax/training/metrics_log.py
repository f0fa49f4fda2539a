"""The log of a training run: progress bar, ``log.jsonl`` and TensorBoard.

In a job of several processes only process 0 writes.
"""

import json
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from sammi_jax.config.experiment import OptimConfig, TrainConfig
from sammi_jax.errors import SammiError
from sammi_jax.files import AppendedFile, write_atomic, write_errors
from sammi_jax.object_store import AnyPath, exists, read_bytes
from sammi_jax.training.flops import peak_flops
from sammi_jax.training.goodput import Goodput, Startup

T = TypeVar("T")

LOG_FILE = "log.jsonl"
_FLUSH_S = 120.0  # between two times that events are forced to the disk


def _rate_factors(config: OptimConfig, scales: Mapping[str, float]) -> dict[str, float]:
    """Factors of the learning rate by their names in the log; empty where all are 1."""
    factors = {f"learning_rate_x{scale:g}": scale for scale in scales.values() if scale != 1.0}
    if config.muon_ratio is not None:
        factors["learning_rate_muon"] = config.muon_ratio
    return factors


def read_log(file: AnyPath) -> list[dict[str, Any]]:
    """The records of a ``log.jsonl``, without a last line that a killed run left unfinished."""
    records = []
    if exists(file):
        for line in read_bytes(file).decode().splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return records


class Log:
    """Progress bar, ``log.jsonl`` and TensorBoard.

    Args:
        workdir: for the files. Records of steps after ``start`` are removed.
        start: the step that the run starts or resumes from.
        config: of the run.
        lr_scales: factor of the learning rate of every trainable parameter, by path.
        startup: its parts so far. The first record has all of them, and ends it.

    Attributes:
        flops: of one step over all devices, for the MFU; None: no MFU.

    Raises:
        SammiError: TensorBoard is asked for and its writer is not installed.
    """

    def __init__(
        self,
        workdir: AnyPath,
        start: int,
        config: TrainConfig,
        lr_scales: Mapping[str, float],
        startup: Startup,
    ):
        self._main = jax.process_index() == 0
        self._file: AppendedFile | None = None
        self._board: _Board | None = None
        past = read_log(workdir / LOG_FILE) if self._main else []
        self._goodput, self._startup = Goodput(past, start, startup), startup
        self._starting = True
        if self._main:
            self._file = _open_log(workdir / LOG_FILE, start)
            if config.tensorboard:
                self._board = _Board(workdir / "tensorboard", start)
        self._batch_size = config.batch_size
        self._factors = _rate_factors(config.optim, lr_scales)
        self.flops: float | None = None
        self._bar = tqdm(
            total=config.steps,
            initial=start,
            desc=config.task.kind,
            unit="step",
            dynamic_ncols=True,
            disable=not self._main,
        )
        self._step = start
        self.restart()

    @property
    def wants_flops(self) -> bool:
        """Whether the MFU can be computed: the peak of this device is known."""
        return peak_flops() is not None

    def restart(self) -> None:
        """Let the time of steps begin here."""
        self._began, self._waited = time.perf_counter(), 0.0

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._main:
            tqdm.write(line)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; how long the loop waits for each is recorded."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of a step."""
        seconds, steps = time.perf_counter() - self._began, step - self._step
        values = {name: float(value) for name, value in metrics.items() if name != "finite"}
        values |= {name: values["learning_rate"] * by for name, by in self._factors.items()}
        values["images_per_s"] = steps * self._batch_size / seconds
        values["data_wait"] = self._waited / seconds
        values["peak_memory_gb"] = peak_memory() / 1e9
        self._goodput.add(seconds)
        if self._starting:
            self._starting = False
            self._startup.mark("step")
            values |= self._startup.values()
            self.say(self._startup.describe())
        values |= self._goodput.values()
        text = f"loss {values['loss']:.4g}, {values['images_per_s']:.3g} images/s"
        peak = peak_flops()
        if self.flops is not None and peak is not None:
            values["mfu"] = self.flops * steps / (seconds * peak * jax.device_count())
            text += f", MFU {values['mfu']:.1%}"
        # tqdm's own fields show the steps per second and the time left.
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(steps)
        self._step = step
        self.add(step, values)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Record more numbers of a step. The time since `write` is not counted as training."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            self._board.add(step, values)
        self.restart()

    def close(self) -> None:
        """Close the bar and the files; say what share of the time trained what counts."""
        self._bar.close()
        if not self._starting:
            self.say(self._goodput.describe())
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _open_log(file: AnyPath, start: int) -> AppendedFile:
    kept = [json.dumps(record) + "\n" for record in read_log(file) if record["step"] <= start]
    write_atomic(file, "".join(kept))
    return AppendedFile(file)


class _Board:
    """An event file for TensorBoard.

    Not tensorboardX's `SummaryWriter`: where its thread cannot write, it waits for it for ever.

    Args:
        folder: of the event files.
        start: TensorBoard hides what it has of later steps.

    Raises:
        SammiError: tensorboardX is not installed, or the file cannot be written.
    """

    def __init__(self, folder: AnyPath, start: int):
        try:
            from tensorboardX.event_file_writer import EventsWriter, directory_check
            from tensorboardX.proto.event_pb2 import (
                Event,  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)
                SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
            )
            from tensorboardX.summary import scalar
        except ImportError as error:
            raise SammiError(
                "tensorboard=True needs the package tensorboardX: pip install "
                "'sammi_jax[tensorboard]'"
            ) from error
        self._folder, self._event, self._scalar = folder, Event, scalar
        self._flushed = time.perf_counter()
        with write_errors(folder):
            directory_check(str(folder))
            self._writer = EventsWriter(str(folder / "events"))
            begin = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))
            self._writer.write_event(begin)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        with write_errors(self._folder):
            for name, value in values.items():
                summary = self._scalar(name, value)
                self._writer.write_event(
                    self._event(wall_time=time.time(), step=step, summary=summary)
                )
            if time.perf_counter() - self._flushed > _FLUSH_S:
                self._writer.flush()
                self._flushed = time.perf_counter()

    def close(self) -> None:
        """Close the file."""
        with write_errors(self._folder):
            self._writer.close()


def peak_memory() -> int:
    """The most bytes in use so far: of the first local device; of the process on the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use", 1024 * in_kib)
