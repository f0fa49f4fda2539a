"""The connection between a process that works in a job and the watchdog that is its parent."""

import json
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, NoReturn

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # as a shell says of a program that Ctrl-C ended
EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command again resumes

# How a process ended: its work is done; it was killed, or its watchdog is gone; it failed by an
# error that it explains; it raised any other exception; it aborted, as JAX does.
Kind = Literal["done", "lost", "failed", "raised", "aborted"]


class Wire:
    """JSON objects, one a line, over a connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._rest = b""

    def send(self, kind: str, **values: Any) -> None:
        """Send an object with these values; nothing where the connection is closed."""
        with suppress(OSError):
            self.connection.sendall(json.dumps({"kind": kind, **values}).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """What has arrived; waits for the first bytes.

        Raises:
            OSError, ValueError, TypeError: the connection was closed, or no JSON objects come.
        """
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [dict(json.loads(line)) for line in lines]


class Channel:
    """The child's connection to its watchdog.

    Attributes:
        port: at which the watchdog listens, should this be process 0.
    """

    def __init__(self, connection: socket.socket, port: int):
        self._wire, self.port = Wire(connection), port
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="watchdog", daemon=True).start()

    def _listen(self) -> None:
        """Take answers; end this process once its watchdog is gone."""
        with suppress(OSError):
            while True:
                for message in self._wire.receive():
                    self._answers.put(message)
        os._exit(EXIT_AGAIN)  # nothing less ends a main thread that hangs in a collective

    def join(
        self, process: int, num_processes: int, hosts: Iterable[str], port: int, token: int
    ) -> str:
        """Let the watchdog find that of process 0; what kept it from that, or an empty text.

        Args:
            process: this one's number.
            num_processes: how many the job has.
            hosts: where process 0 may be reached, tried in this order.
            port: at which its watchdog listens.
            token: a number that only processes of this job know.
        """
        job = {"process": process, "num_processes": num_processes, "hosts": list(hosts)}
        self._wire.send("join", **job, port=port, token=token)
        return self._answers.get()["problem"]

    def leave(self) -> None:
        """Let the watchdog watch this process alone."""
        self._wire.send("leave")

    def fail(self, kind: Kind, text: str, report: str) -> NoReturn:
        """Tell that the work failed, and wait for the end.

        The connections to other processes stay open until the reason is known everywhere.

        Args:
            kind: ``failed`` or ``raised``.
            text: one line, for the other processes.
            report: what this process prints.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        self._wire.send(kind, text=text, report=report)
        while True:
            time.sleep(60)
