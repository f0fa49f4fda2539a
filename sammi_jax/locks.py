"""One process at a time in a folder.

The lock is the operating system's (`fcntl.lockf`). It ends with its process, however that ends; it
holds between the hosts of a network disk (NFS); and worker processes do not inherit it. The file
holds a line about its process, for the message to another one.
"""

import errno
import fcntl
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sammi_jax.errors import SammiError
from sammi_jax.files import write_errors
from sammi_jax.object_store import AnyPath

# A network disk keeps the lock of a host that is gone for a while: NFS 4 for 90 seconds.
OTHER_HOST_WAIT_S = 120.0
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def exclusive(file: AnyPath, what: AnyPath) -> Iterator[None]:
    """Keep other processes from the same block while this one is in it.

    Nothing is locked in a bucket, nor, with a warning, on a disk without locks.

    Args:
        file: that is locked; it is made, and removed at the end. Its parents are created.
        what: is used by one process at a time, for messages.

    Raises:
        SammiError: another process is in it; the disk is full or read-only.
    """
    if not isinstance(file, Path):
        yield
        return
    with write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(file, what)
        os.truncate(descriptor, 0)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()} {since}\n".encode(), 0)
    try:
        yield
    finally:
        # Removed before it is let go: who locks it then sees that it is gone, and makes another.
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _locked(file: Path, what: AnyPath) -> int:
    """A descriptor of the file, which is locked and has its name.

    Raises:
        SammiError: another process holds the lock.
    """
    deadline = time.monotonic() + OTHER_HOST_WAIT_S
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{what}: its disk has no locks ({os.strerror(error.errno)}), so a second run "
                    "there would not be noticed; start one at a time",
                    stacklevel=4,
                )
                return descriptor
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").split(maxsplit=2)
            os.close(descriptor)
            if error.errno not in _HELD:
                raise
            is_elsewhere = len(holder) > 1 and holder[1] != socket.gethostname()
            if not is_elsewhere or time.monotonic() > deadline:
                raise SammiError(_refusal(file, what, holder, is_elsewhere)) from error
            time.sleep(1)
            continue
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        os.close(descriptor)  # the process that had it has just removed it


def _refusal(file: Path, what: AnyPath, holder: list[str], is_elsewhere: bool) -> str:
    who = "another process"
    if len(holder) == 3:
        who = f"process {holder[0]} on {holder[1]}, since {holder[2].strip()},"
    gone = f"; if that host is gone, delete {file}" if is_elsewhere else ""
    return f"{what}: {who} works there; wait for it, end it, or name another folder{gone}"
