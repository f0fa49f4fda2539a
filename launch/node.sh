#!/bin/bash
# One process for each GPU of this machine, as one job:
#
#   launch/again.sh launch/node.sh 8 sammi train --config NAME --workdir DIR
#
# The first argument is the number of processes. Each sees one GPU: of CUDA_VISIBLE_DEVICES, or of
# all. The exit code is 75 if one of them exits with it, else the highest. (One process with all
# GPUs needs no launcher: that is "sammi train" as it is.)
set -euo pipefail

again=75
count=$1
shift
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $((count - 1)))}"
if ((${#gpus[@]} < count)); then
  echo "$0: CUDA_VISIBLE_DEVICES names ${#gpus[@]} GPUs for $count processes" >&2
  exit 2
fi
port=$(python3 -c 'import socket; print(socket.create_server(("", 0)).getsockname()[1])')

processes=()
asked=
told=0 # processes that the signal was passed on to
pass_on() {
  asked=yes
  kill -TERM "${processes[@]:told}" 2>/dev/null || true
  told=${#processes[@]}
}
trap 'told=0; pass_on' TERM INT
for ((i = 0; i < count; i++)); do
  if [[ -n $asked ]]; then break; fi
  CUDA_VISIBLE_DEVICES=${gpus[i]} "$@" --coordinator "127.0.0.1:$port" \
    --num-processes "$count" --process-id "$i" > >(sed -u "s/^/$i: /") 2>&1 &
  processes+=($!)
  # A signal may have come before the process was in the list.
  if [[ -n $asked ]] && ((told < ${#processes[@]})); then pass_on; fi
done

result=0
if ((${#processes[@]} == 0)); then exit "$again"; fi
for process in "${processes[@]}"; do
  code=0
  wait "$process" || code=$?
  while kill -0 "$process" 2>/dev/null; do # a signal ended the wait, not the process
    code=0
    wait "$process" || code=$?
  done
  if ((code == again || (result != again && code > result))); then
    result=$code
  fi
done
exit "$result"
