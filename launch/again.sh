#!/bin/bash
# Run a command, and run it again for as long as it exits with 75, which says that the same command
# resumes (a save on SIGTERM, a lost process of the job):
#
#   launch/again.sh sammi train --config NAME --workdir DIR
#
# SIGTERM and Ctrl-C are passed on, and are the end. After SAMMI_MAX_RESTARTS (100) restarts it gives
# up; before each it waits SAMMI_RESTART_WAIT (10) seconds.
set -euo pipefail

again=75
max_restarts=${SAMMI_MAX_RESTARTS:-100}
child=
asked=
told= # the child that the signal was passed on to
pass_on() {
  asked=yes
  told=$child
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap pass_on TERM INT
# A command in the background. It gets a signal that came before it had a name here, too.
start() {
  "$@" &
  child=$!
  if [[ -n $asked && $told != "$child" ]]; then pass_on; fi
}

for ((restarts = 0; ; restarts++)); do
  if [[ -n $asked ]]; then exit "$again"; fi # while it waited for a restart
  start "$@"
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    code=0
    wait "$child" || code=$?
  done
  if ((code != again)) || [[ -n $asked ]]; then
    exit "$code"
  fi
  if ((restarts >= max_restarts)); then
    echo "$0: given up after $restarts restarts (SAMMI_MAX_RESTARTS)" >&2
    exit "$code"
  fi
  echo "$0: exit code $again, restart $((restarts + 1))" >&2
  start sleep "${SAMMI_RESTART_WAIT:-10}" # a signal ends it
  wait "$child" || true
done
