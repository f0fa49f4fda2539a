"""``launch/``: shellcheck, the manifest against Kubernetes' schemas, and runs of the scripts."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.processes import assert_equal_runs
from tests.xla_flags import fast_flags

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch"), *ROOT.glob("tests/**/*.sh")])
BIN = Path(sys.executable).parent
# A command that notes its arguments, and exits with the next of the codes in the file ``codes``.
FAKE = """#!/bin/bash
echo "$(basename "$0") gpu=${CUDA_VISIBLE_DEVICES:-} $*" >> "$NOTES/calls"
(
  flock 9
  code=$(head -n 1 "$NOTES/codes")
  sed -i 1d "$NOTES/codes"
  exit "${code:-0}"
) 9> "$NOTES/lock"
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder with the fake command ``sammi``, the exit codes it is to give, and its calls."""
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SAMMI_RESTART_WAIT", "0")
    monkeypatch.setenv("SAMMI_POLL", "0.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    executable(tmp_path / "bin" / "sammi", FAKE)
    (tmp_path / "codes").touch()
    return tmp_path


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def calls(notes):
    return (notes / "calls").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    done = run(BIN / "shellcheck", script)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def manifest():
    return yaml.safe_load((LAUNCH / "gke" / "jobset.yaml").read_text())


def test_jobs_of_the_manifest_are_valid():
    """A job of a JobSet is a Job of Kubernetes: `strict` forbids fields that it does not have."""
    for job in manifest()["spec"]["replicatedJobs"]:
        as_job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job["name"]},
            "spec": job["template"]["spec"],
        }
        kubernetes_validate.validate(as_job, "1.35", strict=True)
        as_job["spec"]["backoffLimits"] = as_job["spec"].pop("backoffLimit")
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(as_job, "1.35", strict=True)


def test_manifest_around_the_jobs():
    """The fields of JobSet v1alpha2 (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2)."""
    found = manifest()
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(found["spec"]) <= {"replicatedJobs", "failurePolicy", "network", "suspend"}
    policy = found["spec"]["failurePolicy"]
    assert set(policy) == {"maxRestarts", "rules"}
    for rule in policy["rules"]:
        assert set(rule) == {"name", "action", "onJobFailureReasons"}
        assert rule["action"] == "FailJobSet"
    (job,) = found["spec"]["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"}


def test_manifest_agrees_with_itself():
    """Hosts are the chips of the topology over those of a host; slices are the job's replicas."""
    (job,) = manifest()["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    hosts = int(rows) * int(columns) // container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert f"--set=mesh.slices={job['replicas']}" in container["args"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == "sammi"


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [("0", 0, 1), ("75 75 0", 0, 3), ("75 1", 1, 2), ("137", 137, 1), ("75 75 75 75", 75, 3)],
)
def test_again(notes, codes, expected, starts):
    (notes / "codes").write_text(codes.replace(" ", "\n") + "\n")
    environment = os.environ | {"SAMMI_MAX_RESTARTS": "2"}
    done = run(LAUNCH / "again.sh", "sammi", "train", "--workdir", "a b", env=environment)
    assert done.returncode == expected, done.stderr
    assert calls(notes) == ["sammi gpu= train --workdir a b"] * starts


def test_again_ends_on_sigterm(notes):
    """The command gets the signal, may take its time, and is not started again."""
    slow = "#!/bin/bash\ntrap 'sleep 0.5; exit 75' TERM\necho ready\nwhile :; do sleep 0.1; done\n"
    command = executable(notes / "bin" / "slow", slow)
    process = subprocess.Popen([LAUNCH / "again.sh", command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == ""
    assert process.returncode == 75


# As its first act the command has its launcher told to end: often before that has noted its number.
_TELLS = "#!/bin/bash\ntrap 'exit 75' TERM\nkill -TERM $PPID\nwhile :; do sleep 0.05; done\n"


@pytest.mark.parametrize("launcher", [["again.sh"], ["node.sh", "2"]])
def test_a_signal_at_the_start_is_not_lost(launcher, notes):
    command = executable(notes / "bin" / "tells", _TELLS)
    for _ in range(5):
        done = run(LAUNCH / launcher[0], *launcher[1:], command)
        assert done.returncode == 75, done.stderr


def test_again_ends_while_it_waits(notes):
    """At once, and without a further start."""
    (notes / "codes").write_text("75\n0\n")
    environment = os.environ | {"SAMMI_RESTART_WAIT": "1000"}
    process = subprocess.Popen(
        [LAUNCH / "again.sh", "sammi", "train"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    assert "restart 1" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 75
    assert calls(notes) == ["sammi gpu= train"]


@pytest.mark.parametrize(
    ("codes", "expected"), [("0 0", 0), ("0 1", 1), ("75 137", 75), ("137 75", 75), ("1 2", 2)]
)
def test_node(notes, codes, expected):
    (notes / "codes").write_text(codes.replace(" ", "\n") + "\n")
    done = run(LAUNCH / "node.sh", "2", "sammi", "train", "--config", "x")
    assert done.returncode == expected, done.stderr
    found = sorted(calls(notes), key=lambda line: line.split()[-1])
    port = found[0].partition("127.0.0.1:")[2].split()[0]
    assert found == [
        f"sammi gpu={i} train --config x --coordinator 127.0.0.1:{port} --num-processes 2 "
        f"--process-id {i}"
        for i in range(2)
    ]


def test_node_takes_the_visible_gpus(notes):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert run(LAUNCH / "node.sh", "2", "sammi", env=environment).returncode == 0
    assert sorted(line.split()[1] for line in calls(notes)) == ["gpu=6", "gpu=7"]
    done = run(LAUNCH / "node.sh", "3", "sammi", env=environment)
    assert done.returncode == 2
    assert "names 2 GPUs for 3 processes" in done.stderr


EXPERIMENT = """
import os
from dataclasses import replace
from pathlib import Path

import jax

from sammi_jax.config import CLIP_SIZES, CaptionConfig, OptimConfig, TrainConfig
from sammi_jax.training.metrics_log import Log

clip = CLIP_SIZES["openshapes"]
one = lambda tower: replace(tower, num_layers=1)
config = TrainConfig(
    task=CaptionConfig(model=replace(clip, vision=one(clip.vision), text=one(clip.text))),
    optim=OptimConfig(peak_lr=2e-3, clip_norm=1.0),
    steps=20,
    batch_size=4,
    checkpoint_every=2,
    log_every=1,
)
write = Log.write


def write_and_die(log, step, metrics):
    write(log, step, metrics)
    last = Path(os.environ["LAST"])
    if step == 10 and jax.process_index() == 1 and not last.exists():
        last.touch()
        os.kill(os.getppid(), 9)


Log.write = write_and_die
"""


@pytest.mark.slow
def test_a_node_trains_on_after_a_kill(tmp_path):
    """Two real processes, of which one is killed once: as if it had not been."""
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": fast_flags(fused=True),
        "SAMMI_RESTART_WAIT": "0",
        "LAST": str(tmp_path / "killed"),
    }
    command = [LAUNCH / "again.sh", LAUNCH / "node.sh", "2", "sammi", "train"]
    command += ["--config", tmp_path / "tiny.py", "--workdir"]
    done = run(*command, tmp_path / "run", env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 75, restart 1" in done.stderr
    assert "process 1" in done.stdout
    assert (tmp_path / "killed").exists()
    assert run(*command, tmp_path / "straight", env=environment).returncode == 0
    assert_equal_runs(tmp_path / "run", tmp_path / "straight")


# Two hosts are folders; what is to run on a host runs in its folder. `python3 -m venv` makes an
# environment whose pip installs the fake command.
GCLOUD = """#!/bin/bash
echo "gcloud $*" >> "$NOTES/gcloud"
for word in "$@"; do
  case $word in --command=*) command=${word#--command=} ;; esac
done
case "$*" in
  *"queued-resources create"*) echo ACTIVE > "$NOTES/state" ;;
  *"queued-resources delete"*) rm -rf "$NOTES"/host* "$NOTES/state" ;;
  *"queued-resources describe"*) cat "$NOTES/state" ;;
  *"queued-resources scp"*)
    for host in 0 1; do mkdir -p "$NOTES/host$host" && cp "$5" "$NOTES/host$host"; done ;;
  *"queued-resources ssh"*)
    for host in 0 1; do (cd "$NOTES/host$host" && bash -c "$command") || exit 1; done ;;
esac
"""
PYTHON = """#!/bin/bash
if [[ $2 == venv ]]; then
  mkdir -p "$3/bin"
  printf '#!/bin/bash\\ncp "$NOTES/bin/sammi" sammi/bin/sammi\\n' > "$3/bin/pip"
  chmod +x "$3/bin/pip"
fi
"""


@pytest.fixture
def tpu(notes, monkeypatch):
    executable(notes / "bin" / "gcloud", GCLOUD)
    executable(notes / "bin" / "python3", PYTHON)
    for name, value in {"NAME": "n", "ZONE": "z", "TYPE": "v5litepod-8", "VERSION": "v"}.items():
        monkeypatch.setenv(name, value)
    return lambda *words, **options: run(LAUNCH / "tpu_vm.sh", *words, cwd=notes, **options)


def test_tpu_vm(notes, tpu):
    """Both hosts end with 75 and start again; then one fails, and its code is that of the run."""
    assert tpu("state").stdout == "gone\n"
    assert tpu("up").returncode == 0
    (notes / "codes").write_text("75\n75\n0\n1\n")
    done = tpu("run", "--config", "x", "--set", "task={'a': 'b'}")
    assert done.returncode == 1, done.stderr
    assert calls(notes) == ["sammi gpu= train --distributed --config x --set task={'a': 'b'}"] * 4
    assert tpu("state").stdout == "1\n"
    assert tpu("down").returncode == 0
    assert tpu("state").stdout == "gone\n"
    created = [line for line in (notes / "gcloud").read_text().splitlines() if " create " in line]
    assert created == [
        "gcloud compute tpus queued-resources create n --zone=z --accelerator-type=v5litepod-8 "
        "--runtime-version=v --node-id=n"
    ]


def test_tpu_vm_after_a_preemption(notes, tpu):
    """The slices are gone when the run looks for the first time: it makes new ones."""
    lost = """#!/bin/bash
if [[ ! -e $NOTES/lost ]]; then touch "$NOTES/lost"; echo SUSPENDED > "$NOTES/state"; fi
echo called >> "$NOTES/calls"
"""
    executable(notes / "bin" / "sammi", lost)
    environment = os.environ | {"SLICES": "2", "SPOT": "yes"}
    assert tpu("up", env=environment).returncode == 0
    done = tpu("run", env=environment)
    assert done.returncode == 0, done.stderr
    assert "creating them anew" in done.stderr
    created = [line for line in (notes / "gcloud").read_text().splitlines() if " create " in line]
    assert len(created) == 2
    assert created[1].endswith("--node-count=2 --node-prefix=n --spot")
    assert len(calls(notes)) >= 3


def test_tpu_vm_says_how_it_is_used(tpu):
    done = tpu("help")
    assert done.returncode == 2
    assert "launch/tpu_vm.sh up" in done.stdout
    assert "shellcheck" not in done.stdout


def test_workflows_make_what_there_is():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "slow.yml").read_text())
    made = [one["target"] for one in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]]
    assert made == ["test-slurm", "test-page"]
    assert set(made) <= set(targets)
