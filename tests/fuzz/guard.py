"""What must hold for every input: it is read, or it is refused with one line that names it."""

import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sammi_jax.errors import SammiError

# What one case may take beyond what the process had. The largest legitimate readers here are those
# of images; none of the cases is a file of more than a few hundred kilobytes.
RESIDENT_BYTES = 2**30
ADDRESS_BYTES = 2**32
CPU_SECONDS = 60  # of this process, however busy the machine is
LONGEST_MESSAGE = 4000

_NO_MEMORY = re.compile(r"allocate memory|MemoryError|bad_alloc|out of memory", re.IGNORECASE)
# libtiff reserves what a tag declares, and reads no more into it than the file holds.
_RESERVED = re.compile(r"TIFFReadDirectory:Out of memory reading of")
# Control characters and line ends of Unicode: a terminal obeys them.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What running code from a file would do: Python tells its audit hooks of each.
_EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "subprocess.Popen",
    "socket.connect",
    "shutil.rmtree",
    "ctypes.dlopen",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """What the audit hook sees of the case in work."""

    seen: list[str] | None = None  # events; None: no case is in work
    own: tuple[str, ...] = ()  # folders in which a case may write


class Fault(AssertionError):
    """A reader broke its promise."""


class _TooLongError(BaseException):
    """Not an Exception: a reader that catches all of those must not swallow it."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.seen is None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITES:
            return
        if str(path).startswith(_Watch.own):
            return
        _Watch.seen.append(f"open {path!r} to write")
    elif event.startswith(_EVENTS):
        if event.startswith(("os.", "shutil.")) and _place(arguments).startswith(_Watch.own):
            return
        _Watch.seen.append(f"{event} {arguments!r}"[:200])


def _place(arguments: tuple[Any, ...]) -> str:
    """The path that an event is about; the last argument may be the folder that holds it."""
    path, folder = str(arguments[0]), arguments[-1]
    if isinstance(folder, int) and folder >= 0 and not path.startswith("/"):
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return path


def _start_hook() -> None:
    if not getattr(sys, "_sammi_fuzz_hook", False):  # one cannot be removed
        sys.addaudithook(_hook)
        sys._sammi_fuzz_hook = True  # type: ignore[attr-defined]


def check(read: Callable[[], Any], *names: str, own: tuple[Path, ...] = ()) -> Any:
    """What ``read`` returns, or the `SammiError` that it raises.

    Args:
        read: reads one hostile input.
        names: an error must name one of these.
        own: folders in which it may write.

    Raises:
        Fault: another exception, a message that is not one line or names none of ``names``, more
            memory or time than is stated above, or code that was run.
    """
    _start_hook()
    _Watch.own = ("/proc/", "/dev/", *(str(folder) for folder in own))
    canary = Path("canary")
    before = _peak()
    seen: list[str] = []
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _Watch.seen = seen
            found = read()
    except SammiError as error:
        found = error
    except _TooLongError as error:
        raise Fault(f"not done after {CPU_SECONDS} s of this process") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise Fault(f"{type(error).__name__}: {error}"[:600]) from error
    finally:
        _Watch.seen = None
    if seen:
        raise Fault(f"it did what only code does: {seen[:3]}")
    if canary.exists():
        canary.unlink()
        raise Fault("it ran code: the canary is there")
    grown = _peak(reset=False) - before
    if grown > RESIDENT_BYTES:
        raise Fault(f"{grown / 1e6:.0f} MB of memory")
    if isinstance(found, SammiError):
        _check_message(found, names)
    return found


def _check_message(error: SammiError, names: tuple[str, ...]) -> None:
    text = str(error)
    if control := _CONTROL.search(text):
        raise Fault(f"not one printable line: {control[0]!r} in {text[:300]!r}") from error
    if not text.strip() or len(text) > LONGEST_MESSAGE:
        raise Fault(f"a message of {len(text)} characters: {text[:300]!r}") from error
    if names and not any(name in text for name in names):
        raise Fault(f"does not name {names[0]}: {text[:300]!r}") from error
    cause: BaseException | None = error
    while cause is not None:
        said = f"{type(cause).__name__} {cause}"
        if isinstance(cause, MemoryError) or (
            cause is not error and _NO_MEMORY.search(said) and not _RESERVED.search(said)
        ):
            raise Fault(f"asked for more memory than {ADDRESS_BYTES >> 30} GiB") from error
        cause = cause.__cause__ or cause.__context__


def _peak(reset: bool = True) -> int:
    """The peak of the resident memory since the last call that reset it, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10


@contextmanager
def _limited() -> Iterator[None]:
    """Bounds of address space and of processor time for a block."""

    def stop(number: int, frame: Any) -> None:
        raise _TooLongError

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, handler)
