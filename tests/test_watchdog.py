"""The watchdog alone, in processes without JAX: what ends them, what they say, what does not.

Nothing here depends on how fast the machine is: processes wait for events, and the limits in
seconds are either never reached or what a test waits for.
"""

import json
import signal
import socket
import subprocess
import sys

import pytest

from sammi_jax.parallel import watchdog
from sammi_jax.parallel.watchdog import EXIT_AGAIN, EXIT_FAILED

COUNT = 3
NEVER = 3600.0  # seconds
PROCESS = """
import hashlib, socket, sys, threading, time
from sammi_jax.parallel import watchdog
process, count, port, watchdog.LOST_AFTER_S = map(float, sys.argv[1:])
watchdog.PULSE_S, watchdog.GRACE_S = 0.1, 3600.0
if process == 0:
    server = socket.create_server(("127.0.0.1", int(port)))
    dog = watchdog.Hub("test", server, 7, int(count))
else:
    dog = watchdog.Member("test", ("127.0.0.1", int(port)), 7, int(process))
dog.start()
print("ready", flush=True)
if process == 0:
    while sum(link.process is not None for link in dog._links) < count - 1:
        time.sleep(0.01)
    print("complete", flush=True)
sys.stdin.read()
"""
# As a process inside a collective of a job that has ended; it never fails, so that nothing needs
# to wait for that.
HANG = "dog._failing.wait = lambda timeout: False\ntime.sleep(3600)"


@pytest.fixture
def job():
    """Start a job whose process i does ``works[i]`` once all are there.

    Before that ``visit`` is called with the port. ``lost_after``: by process, where silence counts.
    """
    started = []

    def start(*works, lost_after=None, visit=lambda port: None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for process, work in enumerate(works):
            limit = (lost_after or {}).get(process, NEVER)
            numbers = map(str, (process, len(works), port, limit))
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", f"{PROCESS}\n{work}", *numbers], text=True, **pipes
                )
            )
            assert started[-1].stdout.readline() == "ready\n"
        assert started[0].stdout.readline() == "complete\n"
        visit(port)
        for process in started:
            process.stdin.close()
            process.stdin = None
        return list(started)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(*processes):
    """Exit codes, and lines on stderr, of each."""
    ends = [process.communicate(timeout=1800)[1].strip().splitlines() for process in processes]
    return [process.returncode for process in processes], ends


def test_all_that_leave_end_in_peace(job):
    processes = job(*["dog.leave()"] * COUNT)
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)


@pytest.mark.parametrize("victim", range(COUNT))
@pytest.mark.parametrize("work", [HANG, "dog.leave()", "while True: pass"])
def test_a_killed_process_ends_the_others(job, victim, work):
    processes = job(*[work if process != victim else HANG for process in range(COUNT)])
    killed = processes.pop(victim)
    killed.send_signal(signal.SIGKILL)
    codes, ends = finish(*processes)
    assert codes == [EXIT_AGAIN] * (COUNT - 1)
    for (line,) in ends:
        assert line.startswith(f"test: process {victim} (")
        assert "was lost (its connection was closed)" in line
        assert "since the last save" in line
        assert "start all processes again with the same command" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_other(job, victim):
    """As when its machine is gone: no connection is closed."""
    processes = job(HANG, HANG, lost_after={1 - victim: 1.0})
    processes[victim].send_signal(signal.SIGSTOP)
    codes, ends = finish(processes[1 - victim])
    assert codes == [EXIT_AGAIN]
    for (line,) in ends:
        assert f"process {victim} (" in line
        assert "no sign of life for 1 s" in line


class Lost(Exception):
    """What `hub` raises instead of ending this process."""


@pytest.fixture
def hub(monkeypatch):
    """A hub without a thread, and a function that connects to it."""

    def conclude(hub, text, code):
        raise Lost(text)

    monkeypatch.setattr(watchdog.Hub, "_conclude", conclude)
    monkeypatch.setattr(watchdog, "LOST_AFTER_S", 4 * watchdog.PULSE_S)
    server = socket.create_server(("127.0.0.1", 0))
    hub, opened = watchdog.Hub("test", server, 7, 2), [server]

    def connect(*messages):
        opened.append(socket.create_connection(server.getsockname()))
        read(hub)
        for message in messages:
            send(hub, opened[-1], message)
        return opened[-1]

    yield hub, connect
    for connection in (*opened, *(link.connection for link in hub._links)):
        connection.close()


def read(hub):
    hub._read(timeout=NEVER)  # returns with the first that arrives


def send(hub, connection, message):
    connection.sendall(json.dumps(message).encode() + b"\n")
    read(hub)


HELLO = {"kind": "hello", "token": 7, "process": 1, "host": "a"}


def test_any_sign_of_life_counts_and_only_enough_silence(hub):
    hub, connect = hub
    member = connect(HELLO)
    for _ in range(20):  # pulses of ours: five times as long as may be silent
        hub._pulse()
        send(hub, member, {"kind": "pulse"})
    for _ in range(4):
        hub._pulse()
    with pytest.raises(Lost, match=r"process 1 \(a\) was lost \(no sign of life for 2 s\)"):
        hub._pulse()


def test_a_silent_stranger_is_no_loss(hub):
    hub, connect = hub
    connect()
    for _ in range(4):
        hub._pulse()
    assert len(hub._links) == 1
    hub._pulse()
    assert hub._links == []


# The watchdog's own thread is what must not wait for the main one.
COUNT_PULSES = """
pulses, enough, pulse = [], threading.Event(), dog._pulse
def counted():
    pulse()
    pulses.append(1)
    if len(pulses) == 10:
        enough.set()
dog._pulse = counted
"""


@pytest.mark.parametrize(
    "work",
    [
        "enough.wait()",
        "while not enough.is_set(): pass",
        "while not enough.is_set(): hashlib.pbkdf2_hmac('sha512', b'', b'', 300_000)",
    ],
    ids=["sleeps", "computes in Python", "computes in C"],
)
def test_a_slow_process_still_sends(job, work):
    processes = job("dog.leave()", f"{COUNT_PULSES}\n{work}\ndog.leave()", "dog.leave()")
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_in_one_process_ends_the_others(job, culprit):
    works = [HANG] * COUNT
    works[culprit] = "dog.fail('bad picture')"
    codes, ends = finish(*job(*works))
    assert codes == [EXIT_FAILED] * COUNT
    assert ends.pop(culprit) == []  # has said it already
    for (line,) in ends:
        assert line.startswith(f"test: process {culprit}")
        assert "ended with an error (bad picture)" in line


def test_an_error_in_all_processes_is_each_ones_own(job):
    processes = job(*["dog.fail('bad loss')"] * COUNT)
    assert finish(*processes) == ([EXIT_FAILED] * COUNT, [[]] * COUNT)


def test_strangers_change_nothing(job):
    opened = []

    def visit(port):
        opened.extend(socket.create_connection(("127.0.0.1", port)) for _ in range(3))
        opened[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        opened[1].sendall(b'{"kind": "hello", "token": 8, "process": 1, "host": "x"}\n')
        for stranger in opened[:2]:  # is sent away
            while receive(stranger):
                pass

    processes = job(*["dog.leave()"] * COUNT, visit=visit)
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)
    for stranger in opened:
        stranger.close()


def receive(connection):
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
