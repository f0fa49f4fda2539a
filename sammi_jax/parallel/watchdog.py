"""Ends the processes of a job, with a clear line, once one of them is lost or has failed.

JAX alone leaves the others inside a collective, or aborts them without saying which one is gone;
no thread of an aborted process could still explain that. So each process of a job is two: the
process that was started becomes the watchdog, which uses no JAX, and its child does the work.
Every watchdog holds a TCP connection to that of process 0. The system closes it as soon as a
watchdog dies, and small messages go over it for the case that a machine or the network is gone
without a sign. Process 0 collects how each child ended, decides what ended the job, and tells the
others.
"""

import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from sammi_jax.parallel.channel import EXIT_AGAIN, EXIT_FAILED, Channel, Kind, Wire

PULSE_S = 0.5  # between two messages on a connection
LOST_AFTER_S = 60.0  # a process that was not heard of for this long is lost
GRACE_S = 5.0  # in which all processes may come to the same error, such as a loss that is bad
CONNECT_S = 20.0

_RESTART = "start all processes again with the same command"

# Which of several ends is the cause of the others: JAX's collectives raise an exception where
# another process is lost, and JAX aborts.
_CAUSES = ("lost", "failed", "raised", "aborted")


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        process: its number.
        host: where it ran.
        kind: see `Kind`.
        text: one line that says more.
    """

    process: int
    host: str
    kind: Kind
    text: str

    def verdict(self) -> tuple[str, int]:
        """What the processes say and their exit code, where this is why the job ends."""
        name = f"process {self.process} ({self.host})"
        if self.kind in ("failed", "raised"):
            return (
                f"{name} ended with an error ({self.text}); fix that, and {_RESTART}",
                EXIT_FAILED,
            )
        return (
            f"{name} was lost ({self.text}), and with it what was done since the last save; "
            f"{_RESTART}, to resume"
        ), EXIT_AGAIN


def watch(program: str) -> Channel:
    """Fork: this process becomes the watchdog, and its child returns from here.

    The watchdog does not return: it exits with the code of the child or of the job. To be called
    before JAX starts threads.

    Args:
        program: what the watchdog's lines begin with.
    """
    server = _listen()
    ours, childs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        childs.close()
        sys.exit(Watchdog(program, child, ours, server).run())
    os.setpgid(0, 0)  # a Ctrl-C goes to the watchdog, which passes it on: it must come once
    ours.close()
    port = server.getsockname()[1]
    server.close()
    return Channel(childs, port)


def _listen() -> socket.socket:
    """A listening socket at a free port of all addresses."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


class _Link(Wire):
    """A connection to another watchdog; ``process`` is None until that has named itself."""

    def __init__(self, connection: socket.socket, process: int | None, host: str):
        super().__init__(connection)
        connection.settimeout(PULSE_S)  # a process that reads nothing must not hold us up
        self.process, self.host = process, host
        self.silent = 0  # pulses of ours since it was heard of: our own sleep counts as one

    def receive(self) -> list[dict[str, Any]]:
        messages = super().receive()
        self.silent = 0
        return messages


class Watchdog:
    """Watches a child and, once that has joined a job, the other processes.

    Until then, and where the network does not let it reach the others, the child counts as a job of
    one process.

    Args:
        program: what its lines begin with.
        child: process id.
        channel: the connection to the child.
        server: a listening socket.
    """

    def __init__(self, program: str, child: int, channel: socket.socket, server: socket.socket):
        self._program, self._child = program, child
        self._channel, self._server = Wire(channel), server
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._hear_child)
        self._process, self._host, self._num_processes = 0, socket.gethostname(), 1
        self._token = 0
        self._links: list[_Link] = []  # process 0: to all others; the others: to process 0
        self._unwatched: list[_Link] = []  # stay open: the others may not have heard of it yet
        self._code: int | None = None  # the child's exit code
        self._own: End | None = None
        self._report = ""  # what the child wants to be printed of its error
        self._ends: list[End] = []  # process 0: in the order in which they were heard of
        self._deadline = 0.0  # for further ends, after the first that was none in peace
        self._verdict: tuple[str, int] | None = None  # no text: all ended in peace

    def run(self) -> int:
        """Watch until the end; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        due = time.monotonic()
        while self._verdict is None:
            if time.monotonic() >= due:
                due = time.monotonic() + PULSE_S
                self._pulse()
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data()
            self._look_at_child()
            if self._verdict is None and (self._process == 0 or not self._links):
                self._verdict = self._judge()
        return self._finish(*self._verdict)

    def _pass_on(self, *_: object) -> None:
        """To a job a Ctrl-C is what SIGTERM is: JAX tells all processes of the latter alone."""
        if self._code is None:
            os.kill(self._child, signal.SIGTERM)

    def _pulse(self) -> None:
        for link in tuple(self._links):
            link.send("pulse")
            link.silent += 1
            if link.silent * PULSE_S > LOST_AFTER_S:
                self._drop(link, f"no sign of life for {LOST_AFTER_S:g} s")

    def _look_at_child(self) -> None:
        if self._code is not None:
            return
        process, status = os.waitpid(self._child, os.WNOHANG)
        if not process:
            return
        code = self._code = os.waitstatus_to_exitcode(status)
        if code in (0, EXIT_AGAIN) or (code > 0 and self._num_processes == 1):
            self._note("done", "")
        elif code < 0 and code != -signal.SIGABRT:
            self._note("lost", f"killed by {signal.Signals(-code).name}")
        else:
            self._note("aborted", "aborted, as JAX does where it misses another process")

    def _hear_child(self) -> None:
        try:
            messages = self._channel.receive()
        except OSError:
            self._selector.unregister(self._channel.connection)
            return
        for message in messages:
            match message.pop("kind"):
                case "join":
                    self._join(**message)
                case "leave":
                    self._leave()
                case kind:
                    self._note(kind, message["text"], message["report"])

    def _join(
        self, process: int, num_processes: int, hosts: list[str], port: int, token: int
    ) -> None:
        self._process, self._token, problem = process, token, ""
        try:
            if process == 0:
                self._selector.register(self._server, selectors.EVENT_READ, self._accept)
            else:
                self._add(_connect(hosts, port))
                self._links[0].send("hello", token=token, process=process, host=self._host)
            self._num_processes = num_processes
        except OSError as error:
            problem = f"cannot reach port {port} of {' or '.join(hosts)} ({error})"
        self._channel.send("joined", problem=problem)

    def _leave(self) -> None:
        """Watch the child alone."""
        self._num_processes = 1
        for key in tuple(self._selector.get_map().values()):
            if key.fileobj is not self._channel.connection:
                self._selector.unregister(key.fileobj)
        self._unwatched, self._links = self._links, []

    def _note(self, kind: Kind, text: str, report: str = "") -> None:
        """Record how the child ended, once; where the watchdog of process 0 decides, tell it.

        What happens to the child after the verdict came of the others' end.
        """
        if self._own is not None or self._verdict is not None:
            return
        self._own, self._report = End(self._process, self._host, kind, text), report
        if self._links and self._process != 0:
            self._links[0].send("end", how=kind, text=text)
        else:
            self._record(self._own)

    def _record(self, end: End) -> None:
        if end.kind != "done" and not self._deadline:
            self._deadline = time.monotonic() + GRACE_S
        self._ends.append(end)

    def _judge(self) -> tuple[str, int] | None:
        """What ended the job; None until that is known."""
        all_ended = len({end.process for end in self._ends}) == self._num_processes
        bad = [end for end in self._ends if end.kind != "done"]
        if not bad:
            return ("", 0) if all_ended else None
        cause = min(bad, key=lambda end: _CAUSES.index(end.kind))
        if all_ended or cause.kind == "lost" or time.monotonic() > self._deadline:
            return cause.verdict()
        return None

    def _accept(self) -> None:
        connection, (host, *_) = self._server.accept()
        self._add(_Link(connection, None, host))

    def _add(self, link: _Link) -> None:
        self._links.append(link)
        self._selector.register(link.connection, selectors.EVENT_READ, partial(self._hear, link))

    def _hear(self, link: _Link) -> None:
        try:
            for message in link.receive():
                self._take(link, message)
        except (OSError, ValueError, TypeError):
            self._drop(link, "its connection was closed")

    def _take(self, link: _Link, message: dict[str, Any]) -> None:
        if link.process is None:
            if message.get("token") != self._token:
                raise ConnectionError("not a process of this job")
            link.process, link.host = message["process"], message["host"]
        elif message["kind"] == "end":
            self._record(End(link.process, link.host, message["how"], message["text"]))
        elif message["kind"] == "verdict":
            self._verdict = message["text"], message["code"]

    def _drop(self, link: _Link, why: str) -> None:
        self._links.remove(link)
        self._selector.unregister(link.connection)
        link.connection.close()
        if link.process is None or self._verdict is not None:
            return
        end = End(link.process, link.host, "lost", why)
        if self._process == 0:
            self._record(end)
        else:
            self._verdict = end.verdict()

    def _finish(self, text: str, code: int) -> int:
        """Tell the others, end the child, and print why; the exit code."""
        if self._process == 0:
            for link in self._links:
                link.send("verdict", text=text, code=code)
            self._wait_for_others()
        if self._code is None:
            os.kill(self._child, signal.SIGKILL)
            _, status = os.waitpid(self._child, 0)
            self._code = os.waitstatus_to_exitcode(status)
        if not text:
            return self._code
        explained = self._own is not None and self._own.kind == "failed"
        if self._report and (explained or code == EXIT_FAILED):
            _print_error(self._report)
        if not self._report or code != EXIT_FAILED:
            _print_error(f"\n{self._program}: {text}")
        return code

    def _wait_for_others(self) -> None:
        """Return once they are gone: JAX aborts their children when that of process 0 ends."""
        deadline = time.monotonic() + 2 * GRACE_S
        while any(link.process for link in self._links) and time.monotonic() < deadline:
            for key, _ in self._selector.select(PULSE_S):
                key.data()


def _connect(hosts: list[str], port: int) -> _Link:
    """A connection to process 0, at the first address that answers.

    Raises:
        OSError: none does.
    """
    problem = OSError("no address")
    for host in hosts:
        try:
            return _Link(socket.create_connection((host, port), CONNECT_S), 0, host)
        except OSError as error:
            problem = error
    raise problem


def _print_error(text: str) -> None:
    os.write(2, f"{text}\n".encode())
