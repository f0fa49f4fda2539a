#!/bin/bash
# Training on Cloud TPU VMs: one slice of any size, or several slices.
#
#   export NAME=sammi ZONE=us-west4-a TYPE=v5litepod-256 VERSION=v2-alpha-tpuv5-lite
#   launch/tpu_vm.sh up       create the slices, wait for them, and install the package on all hosts
#   launch/tpu_vm.sh run --config sammi_vitb16 --workdir gs://BUCKET/run
#                             train; creates the slices anew when they were preempted
#   launch/tpu_vm.sh start .. begin what "run" begins, and return
#   launch/tpu_vm.sh state    is it running, done, failed, or are the slices gone
#   launch/tpu_vm.sh logs     the logs of all hosts, into the folder logs-NAME
#   launch/tpu_vm.sh stop     SIGTERM to the training: it saves
#   launch/tpu_vm.sh down     delete the slices
#
# TYPE and VERSION: https://cloud.google.com/tpu/docs/runtimes. Optional: SLICES=2 (several slices;
# add --set mesh.slices=2), SPOT=yes, PACKAGE (what pip installs: default sammi_jax[tpu], or a wheel
# or archive that the hosts can reach), CACHE (folder or bucket of JAX's compilation cache).
# shellcheck disable=SC2016 # commands in single quotes are for the hosts
set -euo pipefail

: "${NAME:?}" "${ZONE:?}"
slices=${SLICES:-1}
package=${PACKAGE:-"sammi_jax[tpu]"}
here=$(dirname "$(readlink -f "$0")")

# A command on all hosts of all slices, at the same time; fails where it failed on one.
everywhere() {
  gcloud compute tpus queued-resources ssh "$NAME" --zone="$ZONE" --node=all --worker=all \
    --command="$1" "${@:2}"
}

# The state of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED (preempted), FAILED, ..
resource() {
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format="value(state.state)" 2>/dev/null || echo NONE
}

create() {
  local options=(--zone="$ZONE" --accelerator-type="${TYPE:?}" --runtime-version="${VERSION:?}")
  if ((slices == 1)); then
    options+=(--node-id="$NAME")
  else
    options+=(--node-count="$slices" --node-prefix="$NAME")
  fi
  if [[ -n ${SPOT:-} ]]; then
    options+=(--spot)
  fi
  gcloud compute tpus queued-resources create "$NAME" "${options[@]}"
}

await() {
  local state
  while state=$(resource) && [[ $state != ACTIVE ]]; do
    case $state in
      FAILED | SUSPENDED | NONE)
        echo "$0: the slices are $state, not ACTIVE" >&2
        return 1
        ;;
    esac
    sleep "${SAMMI_POLL:-30}"
  done
}

install() {
  gcloud compute tpus queued-resources scp "$here/again.sh" "$NAME:" --zone="$ZONE" \
    --node=all --worker=all
  everywhere "python3 -m venv sammi && sammi/bin/pip install --quiet '$package'"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --quiet --force
}

# On each host, detached from the connection: again.sh restarts after exit code 75, which all hosts
# of the job give at the same time; the file "code" then has the exit code of the end.
start() {
  local train cache=${CACHE:-/tmp/sammi-compiled}
  train=$(printf '%q ' bash again.sh sammi/bin/sammi train --distributed "$@")
  everywhere "rm -f code; export JAX_COMPILATION_CACHE_DIR='$cache'; nohup setsid bash -c \
    $(printf %q "$train & echo \$! > pid; wait \$!; echo \$? > code") \
    > train.log 2>&1 < /dev/null &"
}

# The highest exit code of all hosts; "running" where one of them still runs, "gone" without slices.
state() {
  local codes
  if [[ $(resource) != ACTIVE ]]; then
    echo gone
  elif ! codes=$(everywhere 'echo "code=$(cat code 2>/dev/null || echo running)"' | grep ^code=); then
    echo unreachable
  elif grep -q running <<<"$codes"; then
    echo running
  else
    cut -d= -f2 <<<"$codes" | sort -n | tail -n 1
  fi
}

run() {
  local now
  start "$@"
  while true; do
    sleep "${SAMMI_POLL:-30}"
    now=$(state)
    case $now in
      running | unreachable) ;;
      gone)
        echo "$0: the slices were taken away; creating them anew" >&2
        delete || true
        create
        await
        install
        start "$@"
        ;;
      *)
        echo "$0: exit code $now" >&2
        return "$now"
        ;;
    esac
  done
}

logs() {
  mkdir -p "logs-$NAME"
  everywhere 'cat train.log' --output-directory="logs-$NAME"
}

verb=${1:-}
shift || true
case $verb in
  up) create && await && install ;;
  run | start) "$verb" "$@" ;;
  state | logs) "$verb" ;;
  stop) everywhere 'kill -TERM "$(cat pid)"' ;;
  down) delete ;;
  *) # the comment at the top
    sed -n '2,/^set/{/shellcheck/d;/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
