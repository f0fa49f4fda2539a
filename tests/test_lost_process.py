"""Jobs of several `train.py` processes that lose one of them, fail in one, or never assemble."""

import signal
import subprocess
import sys

import pytest

from sammi_jax.training.checkpoint import checkpoint_steps
from tests.processes import (
    ROOT,
    assert_equal_runs,
    finish,
    free_port,
    signal_at,
    start_job,
    start_process,
)
from tests.test_train_kill import EXPERIMENT

STEPS = 24
SHORT = ("--set", f"steps={STEPS}")
STARTED = "os.getppid()"  # the process that was started watches the one that works


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    (folder / "tiny.py").write_text(EXPERIMENT)
    return folder / "tiny.py"


@pytest.fixture(scope="module")
def straight(config, tmp_path_factory):
    """A folder where two processes trained without a break; tests only read it."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    codes, texts = finish(*start_job(config, workdir, *SHORT))
    assert codes == [0, 0], texts
    return workdir


def assert_a_restart_resumes(config, workdir, straight):
    assert 0 < max(checkpoint_steps(workdir)) < STEPS
    codes, texts = finish(*start_job(config, workdir, *SHORT))
    assert codes == [0, 0], texts
    assert_equal_runs(workdir, straight)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_lost_process_ends_the_other_and_a_restart_resumes(config, straight, tmp_path, victim):
    kill = {victim: signal_at(10, "SIGKILL", to=STARTED)}
    codes, texts = finish(*start_job(config, tmp_path, *SHORT, before_in=kill))
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 75), texts
    line = texts[1 - victim].strip().splitlines()[-1]
    print(f"process {victim} killed: {line}")
    assert line.startswith(f"sammi train: process {victim} (")
    assert "was lost" in line
    assert "start all processes again with the same command" in line
    assert_a_restart_resumes(config, tmp_path, straight)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_where_the_system_kills_what_works_both_say_so(config, tmp_path, victim):
    """The child of the process that was started, as where memory runs out."""
    kill = {victim: signal_at(10, "SIGKILL")}
    codes, texts = finish(*start_job(config, tmp_path, *SHORT, before_in=kill))
    assert codes == [75, 75], texts
    for text in texts:
        line = text.strip().splitlines()[-1]
        assert line.startswith(f"sammi train: process {victim} (")
        assert "was lost (killed by SIGKILL)" in line


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_both(config, straight, tmp_path):
    ask = {1: signal_at(10, "SIGTERM", times=2, to=STARTED)}  # the second changes nothing
    codes, texts = finish(*start_job(config, tmp_path, *SHORT, before_in=ask))
    assert codes == [75, 75], texts
    for text in texts:
        assert "asked to end (SIGTERM) after step" in text.strip().splitlines()[-1]
    assert_a_restart_resumes(config, tmp_path, straight)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other(config, tmp_path):
    """Here the other would wait for it in a collective."""
    broken = "import sammi_jax.training.tasks as t\nfrom sammi_jax.errors import SammiError\n" + (
        "def make_task(config): raise SammiError('no such image')\nt.make_task = make_task"
    )
    job = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id")
    codes, texts = finish(
        start_process(config, tmp_path, *job, "0"),
        start_process(config, tmp_path, *job, "1", before=broken),
    )
    assert codes == [1, 1]
    last = [text.strip().splitlines()[-1] for text in texts]
    assert last[0].startswith("sammi train: process 1 (")
    assert "ended with an error (no such image)" in last[0]
    assert last[1] == "sammi train: no such image"


@pytest.mark.parametrize("process", ["0", "1"])
def test_a_job_that_never_assembles(config, tmp_path, process):
    port = free_port()
    job = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2", "--process-id", process)
    early = "import sammi_jax.parallel.job\nsammi_jax.parallel.job.JOIN_TIMEOUT_S = 2"
    (code,), (text,) = finish(start_process(config, tmp_path, *job, before=early))
    assert code == 1
    line = text.strip().splitlines()[-1]
    assert line.startswith("sammi train: the job did not assemble within 2 s")
    assert f"number {process}, waited for 2 processes at 127.0.0.1:{port}" in line


def test_no_environment_describes_a_job(config, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--config", config, "--workdir", tmp_path,
         "--distributed"],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("sammi train: cannot join the job (")
    assert "give --coordinator HOST:PORT, --num-processes N and --process-id I" in done.stderr
