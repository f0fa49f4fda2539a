"""Ends the processes of a job, with a clear line, once one of them is lost or has failed.

JAX alone leaves the others inside a collective, and aborts them when its own heartbeat fails. Here
every process holds a TCP connection to process 0. The system closes it as soon as a process dies,
and small messages go over it for the case that a machine or the network is gone without a sign.
A thread does all this: it needs nothing of the main thread, which may be compiling, or hang.
"""

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

PULSE_S = 0.5  # between two messages on a connection
LOST_AFTER_S = 60.0  # a process that was not heard of for this long is lost
GRACE_S = 5.0  # for an end that all processes come to by themselves, such as a loss that is bad
CONNECT_S = 20.0

EXIT_FAILED = 1
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command again goes on

_RESTART = "start all processes again with the same command"


class _Link:
    """A connection to another process; ``process`` is None until that has named itself."""

    def __init__(self, connection: socket.socket, process: int | None, host: str):
        connection.settimeout(PULSE_S)  # a process that reads nothing must not hold us up
        self.connection, self.process, self.host = connection, process, host
        self.silent = 0  # pulses of ours since it was heard of: our own sleep counts as one
        self.left = False
        self._rest = b""

    @property
    def name(self) -> str:
        return f"process {self.process} ({self.host})"

    def send(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # reading says that it is closed
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """What has arrived.

        Raises:
            OSError, ValueError: the connection was closed, or speaks another language.
        """
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError
        self.silent = 0
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [dict(json.loads(line)) for line in lines]


class Watchdog:
    """One process's view of its job; `Hub` for process 0, which hears of all, and `Member`.

    Args:
        program: what its lines begin with.
    """

    def __init__(self, program: str):
        self._program = program
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._leaving = threading.Event()  # set by the main thread: all is done
        self._failure = ""
        self._failing = threading.Event()  # set by the main thread: it failed, with that text
        self._over = threading.Event()  # set by the watchdog's: the main thread may go on

    def start(self) -> None:
        """Begin to watch."""
        _delay_abort()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._over.set()

    def leave(self) -> None:
        """Return once all processes are here; where one is lost or fails, end as the others do."""
        sys.stdout.flush()
        self._leaving.set()
        self._over.wait()

    def wait_for_cause(self) -> None:
        """Do not return where another process turns out to be lost: this one's error came of it."""
        self._over.wait(GRACE_S)

    def fail(self, text: str) -> NoReturn:
        """Tell the others that this process failed, and end it.

        Not by an exception: at exit JAX would wait for processes that hang in a collective.
        """
        self._failure = text
        self._failing.set()
        self._over.wait(3 * GRACE_S)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._over.is_set():
                if time.monotonic() >= due:
                    due = time.monotonic() + PULSE_S
                    self._pulse()
                self._read(max(0.0, due - time.monotonic()))
        finally:
            self._over.set()  # whatever happened here, the main thread must not wait for ever

    def _pulse(self) -> None:
        self._tell({"kind": "pulse"})
        for link in tuple(self._links):
            link.silent += 1
            if link.silent * PULSE_S > LOST_AFTER_S:
                self._drop(link, f"no sign of life for {LOST_AFTER_S:g} s")
        self._report()

    def _report(self) -> None:
        """Pass on what the main thread has come to."""
        raise NotImplementedError

    def _read(self, timeout: float) -> None:
        """Take what arrives within ``timeout`` seconds."""
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                self._accept()
            else:
                self._receive(key.data)

    def _accept(self) -> None:
        raise NotImplementedError

    def _receive(self, link: _Link) -> None:
        try:
            for message in link.receive():
                self._take(link, message)
        except (OSError, ValueError):
            self._drop(link, "its connection was closed")

    def _take(self, link: _Link, message: dict[str, Any]) -> None:
        raise NotImplementedError

    def _add(self, link: _Link) -> None:
        self._links.append(link)
        self._selector.register(link.connection, selectors.EVENT_READ, link)

    def _drop(self, link: _Link, why: str) -> None:
        if self._over.is_set():
            return  # at the end all are closed
        self._close(link)
        if link.process is not None:
            self._conclude(
                f"{link.name} was lost ({why}), and with it what was done since the last save; "
                f"{_RESTART}, to go on from there",
                EXIT_AGAIN,
            )

    def _close(self, link: _Link) -> None:
        self._links.remove(link)
        self._selector.unregister(link.connection)
        link.connection.close()

    def _tell(self, message: dict[str, Any]) -> None:
        for link in self._links:
            link.send(message)

    def _conclude(self, text: str, code: int) -> None:
        """The job has come to its end, for the reason in ``text``."""
        if code == EXIT_FAILED and not self._leaving.is_set():
            self._failing.wait(GRACE_S)
        if self._failing.is_set():  # the main thread has said why, and ends the process
            self._go_last()
            self._over.set()
            return
        os.write(2, f"\n{self._program}: {text}\n".encode())
        self._go_last()
        os._exit(code)  # nothing less ends a main thread that hangs in a collective

    def _go_last(self) -> None:
        """Wait for what must be over before this process ends."""


class Member(Watchdog):
    """A process other than 0.

    Args:
        program: what its lines begin with.
        address: where process 0 listens.
        token: a number that only processes of this job know.
        process: this process's number.

    Raises:
        OSError: process 0 cannot be reached.
    """

    def __init__(self, program: str, address: tuple[str, int], token: int, process: int):
        super().__init__(program)
        link = _Link(socket.create_connection(address, CONNECT_S), 0, address[0])
        hello = {"kind": "hello", "token": token}
        link.send(hello | {"process": process, "host": socket.gethostname()})
        self._add(link)

    def _report(self) -> None:
        if self._failing.is_set():
            self._tell({"kind": "failed", "text": self._failure})
        elif self._leaving.is_set():
            self._tell({"kind": "left"})

    def _take(self, link: _Link, message: dict[str, Any]) -> None:
        if message["kind"] == "end":
            self._conclude(message["text"], message["code"])
        elif message["kind"] == "bye":
            self._over.set()


class Hub(Watchdog):
    """Process 0.

    Args:
        program: what its lines begin with.
        server: a listening socket.
        token: a number that only processes of this job know.
        num_processes: how many the job has.
    """

    def __init__(self, program: str, server: socket.socket, token: int, num_processes: int):
        super().__init__(program)
        self._server, self._token, self._num_members = server, token, num_processes - 1
        self._selector.register(server, selectors.EVENT_READ)

    def _accept(self) -> None:
        connection, (host, *_) = self._server.accept()
        self._add(_Link(connection, None, host))

    def _report(self) -> None:
        if self._failing.is_set():
            self._conclude(_failed("process 0", self._failure), EXIT_FAILED)
        elif self._leaving.is_set() and sum(x.left for x in self._links) == self._num_members:
            self._tell({"kind": "bye"})
            self._over.set()

    def _take(self, link: _Link, message: dict[str, Any]) -> None:
        if link.process is None:
            if message.get("token") != self._token:
                raise ConnectionError  # of no business here
            link.process, link.host = message["process"], message["host"]
        elif message["kind"] == "left":
            link.left = True
        elif message["kind"] == "failed":
            self._conclude(_failed(link.name, message["text"]), EXIT_FAILED)

    def _conclude(self, text: str, code: int) -> None:
        self._tell({"kind": "end", "text": text, "code": code})
        super()._conclude(text, code)

    def _go_last(self) -> None:
        # Once this process ends JAX aborts the others, wherever they are in ending by themselves.
        deadline = time.monotonic() + 2 * GRACE_S
        while self._links and time.monotonic() < deadline:
            for key, _ in self._selector.select(PULSE_S):
                link = key.data
                if link is None:
                    continue
                try:
                    link.receive()
                except (OSError, ValueError):
                    self._close(link)


def _delay_abort() -> None:
    """Let an abort of this process take 6 s longer, in which the watchdog says why and ends it.

    JAX aborts at once where it sees process 0 go, and would be first. The handler is C's own
    ``sleep``, which takes the signal's number for its seconds: Python's handlers run in the main
    thread, once the abort is over.
    """
    c = ctypes.CDLL(None)
    c.signal.argtypes, c.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    c.signal(signal.SIGABRT, ctypes.cast(c.sleep, ctypes.c_void_p))


def _failed(who: str, text: str) -> str:
    return f"{who} ended with an error ({text}); mend that, and {_RESTART}"
