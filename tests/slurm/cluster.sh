#!/bin/bash
# A Slurm cluster of two nodes on this machine, for as long as a command runs:
#
#   tests/slurm/cluster.sh COMMAND ...
#
# munged, slurmctld and two slurmd run as the user who calls it, on free ports, with all their files
# in a temporary folder; a Slurm that this machine belongs to is not touched. Needs Debian's or
# Ubuntu's packages: sudo apt-get install slurm-wlm munge
set -euo pipefail

PATH=$PATH:/usr/sbin
for program in munged slurmctld slurmd sbatch; do
  if ! command -v "$program" >/dev/null; then
    echo "$0: $program is missing; sudo apt-get install slurm-wlm munge" >&2
    exit 1
  fi
done

folder=$(mktemp -d /tmp/slurm-XXXXXX)
started=()
# shellcheck disable=SC2329 # the trap calls it
stop() {
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill "$(cat "${started[i]}")" 2>/dev/null || true
  done
  sleep 1
  rm -rf "$folder"
}
trap stop EXIT

# Both nodes are this machine, by its two names: a node's name must lead to it in the network.
host=$(hostname -s)
read -r -a ports < <(python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
cat >"$folder/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdTimeout=0
KillWait=300
MinJobAge=86400
SchedulerParameters=batch_sched_delay=1
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=2 State=UNKNOWN
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

mkdir "$folder/state"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --log-file="$folder/munged.log" --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed"
started+=("$folder/munged.pid")
slurmctld -f "$SLURM_CONF"
started+=("$folder/slurmctld.pid")
for node in "$host" localhost; do
  slurmd -f "$SLURM_CONF" -N "$node"
  started+=("$folder/slurmd-$node.pid")
done

for ((i = 0; i < 60; i++)); do
  if [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 2 ]]; then
    "$@"
    exit
  fi
  sleep 1
done
echo "$0: the nodes did not come up:" >&2
tail -n 5 "$folder"/*.log >&2
exit 1
