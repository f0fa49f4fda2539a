"""A run's claim to its folder: no other run works there, and it is the same experiment and data."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import jax

from sammi_jax.config.experiment import TrainConfig
from sammi_jax.config.files import save_config
from sammi_jax.errors import SammiError
from sammi_jax.files import read_json, write_json
from sammi_jax.locks import exclusive
from sammi_jax.object_store import AnyPath, exists
from sammi_jax.parallel.job import anywhere
from sammi_jax.training.task import Task

LOCK_FILE, DATA_FILE = ".train.lock", "data.json"


@contextmanager
def claimed(workdir: AnyPath, config: TrainConfig, task: Task) -> Iterator[None]:
    """Keep the folder from other runs; write its configuration and what its data are, or compare.

    Process 0 does; all raise where that fails. At the end it warns if the data have changed.

    Raises:
        SammiError: another run works in the folder, it holds another experiment, or the training
            set is not the one that it was begun with.
    """
    problem, main = None, jax.process_index() == 0
    with ExitStack() as stack:
        if main:
            try:
                stack.enter_context(exclusive(workdir / LOCK_FILE, workdir))
                save_config(config, workdir)
                _check_data(workdir, config, task)
            except SammiError as error:
                problem = error
        if anywhere(problem is not None):
            raise problem or SammiError(
                f"{workdir}: cannot be used; the message of process 0 says why"
            )
        yield
        if main and task.data_fingerprint() != read_json(workdir / DATA_FILE).get("fingerprint"):
            warnings.warn(
                f"{config.data.name}: has changed while the run in {workdir} trained on it; train "
                "again in another folder if the model must belong to one state of it",
                stacklevel=2,
            )


def _check_data(workdir: AnyPath, config: TrainConfig, task: Task) -> None:
    file = workdir / DATA_FILE
    now = {"name": config.data.name, "fingerprint": task.data_fingerprint()}
    if not exists(file):  # also of a run that began before there was this file
        write_json(file, now)
    elif read_json(file).get("fingerprint") != now["fingerprint"]:
        raise SammiError(
            f"{config.data.name}: has changed since the run in {workdir} began (other files, or "
            "files of another size); restore it, or train in another folder; to go on with the "
            f"data as they are now, delete {file}"
        )
