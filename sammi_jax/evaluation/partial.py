"""An evaluation that is under way, on disk: an interrupted one resumes where it was saved."""

import json
from io import BytesIO
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sammi_jax.errors import reading
from sammi_jax.evaluation.totals import Counts, from_arrays, to_arrays
from sammi_jax.files import write_atomic
from sammi_jax.object_store import AnyPath, exists, read_bytes
from sammi_jax.typing import NpArray


class PartialResult:
    """Sums after some batches, in one file that is replaced atomically.

    Args:
        file: its path, with the suffix ``.npz``.
        identity: what the sums belong to, as JSON's types; the file of another evaluation is
            ignored.
    """

    def __init__(self, file: AnyPath, identity: dict[str, Any]):
        self._file, self._identity = file, json.dumps(identity, sort_keys=True)

    def save(self, sums: Counts, batches_done: int) -> None:
        """Replace the file (the first process of a job writes it)."""
        if jax.process_index() != 0:
            return
        content = BytesIO()
        arrays: Any = to_arrays(sums)  # `savez` has options among its names
        identity, done = np.array(self._identity), np.array(batches_done)
        np.savez(content, identity=identity, batches_done=done, **arrays)
        write_atomic(self._file, content.getvalue())

    def load(self, start: Counts) -> tuple[Counts, int]:
        """The saved sums and how many batches they hold; ``start`` and 0 where there are none.

        The first process reads the file and broadcasts what it holds.

        Raises:
            SammiError: the file is damaged.
        """
        found = self._read() if jax.process_index() == 0 else None
        sums, done = found or (start, 0)
        if jax.process_count() > 1:
            words = jax.tree.map(_as_words, (sums, np.int64(done)))
            words = multihost_utils.broadcast_one_to_all(words)
            sums, done = jax.tree.map(_from_words, words, (start, np.int64(done)))
        return sums, int(done)

    def _read(self) -> tuple[Counts, int] | None:
        if not exists(self._file):
            return None
        with reading(self._file, "delete it to evaluate from the start", "damaged"):
            content = BytesIO(read_bytes(self._file))
            with np.load(content, allow_pickle=False) as arrays:
                if str(arrays["identity"]) != self._identity:
                    return None
                return from_arrays(dict(arrays)), int(arrays["batches_done"])

    def remove(self) -> None:
        """Delete the file: the evaluation is done."""
        if jax.process_index() == 0:
            self._file.unlink(missing_ok=True)


def _as_words(array: Any) -> NpArray:
    """An int64 array as uint32 of twice its length: JAX would cut 64 bits down to 32."""
    return np.atleast_1d(np.asarray(array, np.int64)).view(np.uint32)


def _from_words(words: Any, like: Any) -> NpArray:
    """The inverse of `_as_words`, for an array of the shape of ``like``."""
    return np.ascontiguousarray(words, np.uint32).view(np.int64).reshape(np.shape(like))
