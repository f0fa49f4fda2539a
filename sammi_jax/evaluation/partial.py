"""An evaluation that is under way, on disk: an interrupted one goes on where it was saved."""

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from jax.experimental import multihost_utils

from sammi_jax.errors import SammiError
from sammi_jax.evaluation.totals import Totals, from_arrays, to_arrays
from sammi_jax.files import one_line


class PartialResult:
    """Totals after some batches, in one file that is replaced whole.

    Args:
        file: where.
        identity: what the totals belong to, as JSON's types; a file of another evaluation counts
            as none.
    """

    def __init__(self, file: Path, identity: dict[str, Any]):
        self._file, self._identity = file, json.dumps(identity, sort_keys=True)

    def save(self, totals: Totals, batches_done: int) -> None:
        """Replace the file (the first process of a job writes it)."""
        if jax.process_index() != 0:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                identity=np.array(self._identity),
                batches_done=np.array(batches_done),
                allow_pickle=False,
                **to_arrays(totals),
            )
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._file)

    def load(self, start: Totals) -> tuple[Totals, int]:
        """The saved totals and how many batches they hold; ``start`` and 0 where there are none.

        The first process reads; the others are told.

        Raises:
            SammiError: the file is damaged.
        """
        found = self._read() if jax.process_index() == 0 else None
        totals, done = found or (start, 0)
        if jax.process_count() > 1:
            totals, done = multihost_utils.broadcast_one_to_all((totals, np.int32(done)))
        return totals, int(done)

    def _read(self) -> tuple[Totals, int] | None:
        if not self._file.is_file():
            return None
        try:
            with self._file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                if str(arrays["identity"]) != self._identity:
                    return None
                return from_arrays(dict(arrays)), int(arrays["batches_done"])
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise SammiError(
                f"{self._file}: damaged ({one_line(error)}); delete it to evaluate anew"
            ) from error

    def remove(self) -> None:
        """Forget it: the evaluation is done."""
        if jax.process_index() == 0:
            self._file.unlink(missing_ok=True)
