"""The watchdog alone, in processes without JAX: what ends them, what they say, what does not."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from sammi_jax.parallel.watchdog import EXIT_AGAIN, EXIT_FAILED

COUNT = 3
PROCESS = """
import hashlib, socket, sys, time
from sammi_jax.parallel import watchdog
watchdog.LOST_AFTER_S = 2.0
watchdog.GRACE_S = 1.0
process, port = int(sys.argv[1]), int(sys.argv[2])
if process == 0:
    server = socket.create_server(("127.0.0.1", port))
    dog = watchdog.Hub("test", server, 7, 3)
else:
    dog = watchdog.Member("test", ("127.0.0.1", port), 7, process)
dog.start()
print("ready", flush=True)
"""
HANG = "time.sleep(100)"
FOR_LONG = "end = time.monotonic() + 4\nwhile time.monotonic() < end"


@pytest.fixture
def job():
    """Start a job whose process i does ``works[i]`` once all are there."""
    started = []

    def start(*works):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for process, work in enumerate(works):
            code = f"{PROCESS}\nsys.stdin.read()\n{work}"
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, str(process), port], text=True, **pipes
                )
            )
            assert started[-1].stdout.readline() == "ready\n"
        time.sleep(0.5)  # process 0 has heard the others' names
        for process in started:
            process.stdin.close()
            process.stdin = None
        return started, int(port)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finish(*processes):
    """Exit codes, and lines on stderr, of each."""
    ends = [process.communicate(timeout=60)[1].strip().splitlines() for process in processes]
    return [process.returncode for process in processes], ends


def test_all_that_leave_end_in_peace(job):
    processes, _ = job(*["dog.leave()"] * COUNT)
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)


@pytest.mark.parametrize("victim", range(COUNT))
@pytest.mark.parametrize("work", [HANG, "dog.leave()", "while True: pass"])
def test_a_killed_process_ends_the_others(job, victim, work):
    processes, _ = job(*[work if process != victim else HANG for process in range(COUNT)])
    killed = processes.pop(victim)
    begin = time.monotonic()
    killed.send_signal(signal.SIGKILL)
    codes, ends = finish(*processes)
    assert time.monotonic() - begin < 5
    assert codes == [EXIT_AGAIN] * (COUNT - 1)
    for (line,) in ends:
        assert line.startswith(f"test: process {victim} (")
        assert "was lost (its connection was closed)" in line
        assert "since the last save" in line
        assert "start all processes again with the same command" in line


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_others(job, victim):
    """As when its machine is gone: no connection is closed."""
    processes, _ = job(*[HANG] * COUNT)
    processes[victim].send_signal(signal.SIGSTOP)
    others = [process for index, process in enumerate(processes) if index != victim]
    codes, ends = finish(*others)
    assert codes == [EXIT_AGAIN] * (COUNT - 1)
    for (line,) in ends:
        assert f"process {victim} (" in line
        assert "no sign of life for 2 s" in line


@pytest.mark.parametrize(
    "work",
    [
        "time.sleep(4)",
        f"{FOR_LONG}: pass",
        f"{FOR_LONG}: hashlib.pbkdf2_hmac('sha512', b'', b'', 300_000)",
    ],
    ids=["sleeps", "computes in Python", "computes in C"],
)
def test_a_slow_process_is_not_lost(job, work):
    processes, _ = job("dog.leave()", f"{work}\ndog.leave()", "dog.leave()")
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_error_in_one_process_ends_the_others(job, culprit):
    works = [HANG] * COUNT
    works[culprit] = "dog.fail('bad picture')"
    processes, _ = job(*works)
    codes, ends = finish(*processes)
    assert codes == [EXIT_FAILED] * COUNT
    assert ends.pop(culprit) == []  # has said it already
    for (line,) in ends:
        assert line.startswith(f"test: process {culprit}")
        assert "ended with an error (bad picture)" in line


def test_an_error_in_all_processes_is_each_ones_own(job):
    processes, _ = job(*["dog.fail('bad loss')"] * COUNT)
    assert finish(*processes) == ([EXIT_FAILED] * COUNT, [[]] * COUNT)


def test_strangers_change_nothing(job):
    processes, port = job("time.sleep(3)\ndog.leave()", "dog.leave()", "dog.leave()")
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(b'{"kind": "hello", "token": 8, "process": 1, "host": "x"}\n')
    assert finish(*processes) == ([0] * COUNT, [[]] * COUNT)
    for stranger in strangers:
        stranger.close()
