"""The watchdog alone, in processes without JAX: what ends them, what they say, what does not."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from sammi_jax.parallel.channel import EXIT_AGAIN, EXIT_FAILED

COUNT = 3
# Prints the port of its watchdog and its own process id, joins, and works.
PROCESS = """
import os, signal, sys, time
from sammi_jax.parallel import watchdog
watchdog.GRACE_S, watchdog.LOST_AFTER_S = map(float, sys.argv[3:])
channel = watchdog.watch("test")
print(channel.port, os.getpid(), flush=True)
port, hosts = int(sys.stdin.readline()), ["127.0.0.1"]
problem = channel.join(int(sys.argv[1]), int(sys.argv[2]), hosts, port, 7)
print(problem or "joined", flush=True)
def fail(text):
    channel.fail("failed", text, "I failed: " + text)
def raises(text):
    channel.fail("raised", text, "Traceback: " + text)
sys.stdin.readline()
"""
HANG = "time.sleep(100)"


class Job:
    """Processes of which number i does ``works[i]`` once all are there."""

    def __init__(self, works, port=None, grace=60, lost_after=60):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", f"{PROCESS}\n{work}", *map(str, numbers)],
                text=True,
                **pipes,
            )
            for numbers, work in (
                ((number, len(works), grace, lost_after), work) for number, work in enumerate(works)
            )
        ]
        first = [list(map(int, p.stdout.readline().split())) for p in self.processes]
        self.port, self.children = port or first[0][0], [child for _, child in first]
        for process in self.processes:
            self._say(process, str(self.port))
        self.answers = [process.stdout.readline().strip() for process in self.processes]
        for process in self.processes:
            self._say(process, "go")

    def _say(self, process, text):
        process.stdin.write(text + "\n")
        process.stdin.flush()

    def finish(self, *without):
        """Exit codes, and lines on stderr, of each; the children are gone."""
        others = [p for number, p in enumerate(self.processes) if number not in without]
        ends = [process.communicate(timeout=1800)[1].strip().splitlines() for process in others]
        for child in self.children:
            wait_until_gone(child)
        return [process.returncode for process in others], ends


def wait_until_gone(child):
    deadline = time.monotonic() + 1800  # a safety net: no test is about how long it takes
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError(f"{child} goes on without its watchdog")


@pytest.fixture
def start():
    """Start a `Job`, which is killed at the end."""
    started = []

    def start_one(*works, **settings):
        started.append(Job(works, **settings))
        return started[-1]

    yield start_one
    for process in (process for job in started for process in job.processes):
        process.kill()
        process.communicate()


def test_all_that_are_done_end_in_peace(start):
    job = start(*["pass"] * COUNT)
    assert job.answers == ["joined"] * COUNT
    assert job.finish() == ([0] * COUNT, [[]] * COUNT)


def test_each_keeps_its_exit_code(start):
    assert start(*["sys.exit(75)"] * 2).finish() == ([EXIT_AGAIN] * 2, [[]] * 2)


def assert_all_say(found, begin, part):
    codes, ends = found
    assert codes == [EXIT_AGAIN] * len(codes)
    for (line,) in ends:
        assert line.startswith(f"test: {begin} (")
        assert f"was lost ({part})" in line
        assert "since the last save" in line
        assert "start all processes again with the same command" in line


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("work", [HANG, "pass", "while True: pass"])
def test_a_killed_process_ends_the_others(start, victim, work):
    job = start(*[work if process != victim else HANG for process in range(COUNT)])
    job.processes[victim].send_signal(signal.SIGKILL)
    assert_all_say(job.finish(victim), f"process {victim}", "its connection was closed")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_child_ends_all(start, victim):
    """As where memory runs out: the system picks the larger of the two."""
    job = start(*[HANG] * COUNT)
    os.kill(job.children[victim], signal.SIGKILL)
    assert_all_say(job.finish(), f"process {victim}", "killed by SIGKILL")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("consequence", ["os.abort()", "raises('Connection reset by peer')"])
def test_what_came_of_the_loss_is_not_blamed(start, victim, consequence):
    """JAX aborts the others, or their collectives raise an exception, before the loss is known."""
    works = [consequence] * COUNT
    works[victim] = "time.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)"
    assert_all_say(start(*works).finish(), f"process {victim}", "killed by SIGKILL")


def test_an_abort_without_a_cause_is_a_loss(start):
    found = start(HANG, "os.abort()", HANG, grace=1).finish()
    assert_all_say(found, "process 1", "aborted, as JAX does where it misses another process")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_falls_silent_ends_the_other(start, victim):
    """As when its machine is gone: no connection is closed."""
    job = start(*[HANG] * 2, lost_after=5)
    job.processes[victim].send_signal(signal.SIGSTOP)
    others = [number for number in range(2) if number != victim]
    ends = [job.processes[number].communicate(timeout=1800)[1] for number in others]
    assert [job.processes[number].returncode for number in others] == [EXIT_AGAIN]
    for end in ends:
        assert f"process {victim} (" in end
        assert "no sign of life for 5 s" in end
    job.processes[victim].send_signal(signal.SIGKILL)
    wait_until_gone(job.children[victim])


@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("kind", ["fail", "raises"])
def test_an_error_in_one_process_ends_the_others(start, culprit, kind):
    works = [HANG] * COUNT
    works[culprit] = f"{kind}('bad image')"
    codes, ends = start(*works, grace=1).finish()
    assert codes == [EXIT_FAILED] * COUNT
    own = {"fail": "I failed: bad image", "raises": "Traceback: bad image"}
    assert ends.pop(culprit) == [own[kind]]
    for (line,) in ends:
        assert line.startswith(f"test: process {culprit} (")
        assert "ended with an error (bad image)" in line


def test_an_error_in_all_processes_is_each_ones_own(start):
    found = start(*["fail('bad loss')"] * COUNT).finish()
    assert found == ([EXIT_FAILED] * COUNT, [["I failed: bad loss"]] * COUNT)


def test_strangers_change_nothing(start):
    job = start("time.sleep(3)", "pass", "pass")
    strangers = [socket.create_connection(("127.0.0.1", job.port)) for _ in range(4)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(b'{"kind": "hello", "token": 8, "process": 1, "host": "x"}\n')
    strangers[3].sendall(b"5\n")
    assert job.finish() == ([0] * COUNT, [[]] * COUNT)
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once_as_sigterm(start, number):
    count = """
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
print("ready", flush=True)
while not got:
    time.sleep(0.05)
time.sleep(0.5)
sys.exit(len(got))
"""
    job = start(count)
    assert job.processes[0].stdout.readline() == "ready\n"
    job.processes[0].send_signal(number)
    assert job.finish() == ([1], [[]])


def test_where_process_0_is_out_of_reach_each_is_watched_alone(start):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        leave = "channel.leave()\ntime.sleep(1)\n"
        job = start(leave + "sys.exit(3)", leave + "os.abort()", leave, port=port)
        assert job.answers[0] == "joined"
        for answer in job.answers[1:]:
            assert answer.startswith(f"cannot reach port {port} of 127.0.0.1 (")
        codes, ends = job.finish()
    assert codes == [3, EXIT_AGAIN, 0]
    assert ends[0] == ends[2] == []
    assert "process 1 (" in ends[1][0]
    assert "was lost (aborted, as JAX does" in ends[1][0]
