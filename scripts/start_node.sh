#!/usr/bin/env bash
# One run over several nodes: the same command on each, with its own NODE_RANK.
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/start_node.sh configs/openpangu_1b_from_7b_2nodes.yaml
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash scripts/start_node.sh configs/openpangu_1b_from_7b_2nodes.yaml
#
# Node 0 runs the whole configuration (further arguments go to npd run). The others wait for its training jobs, which
# appear in the run directory, and join each with msrun as NODE_RANK; they leave when node 0 has finished the run or
# NODE_WAIT_S seconds (default 86400) have passed without a job. All nodes see the run directory, models and data under
# the same paths.
#
# Environment: NODES, NODE_RANK, MASTER_ADDR (address of node 0), MASTER_PORT (8118), NPUS_PER_NODE (what
# ASCEND_RT_VISIBLE_DEVICES or /dev/davinci* show), HCCL_CONNECT_TIMEOUT (1800), HCCL_SOCKET_IFNAME.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  echo "error: $*" >&2
  exit 2
}

[ $# -ge 1 ] || fail "usage: NODES=n NODE_RANK=r MASTER_ADDR=address bash scripts/start_node.sh CONFIG [npd run options]"
config=$1
[ -f "$config" ] || fail "config $config cannot be read"
for name in NODES NODE_RANK; do
  [[ ${!name:-} =~ ^[0-9]+$ ]] || fail "$name is '${!name:-}': set it to a number"
done
if [ "$NODE_RANK" -ge "$NODES" ]; then
  fail "NODE_RANK $NODE_RANK is not below NODES $NODES"
fi
[ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set: give the address of node 0 on every node"
if [ -z "${NPUS_PER_NODE:-}" ]; then
  if [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
    NPUS_PER_NODE=$(tr ',' '\n' <<<"$ASCEND_RT_VISIBLE_DEVICES" | grep -c .)
  else
    NPUS_PER_NODE=$(find /dev -maxdepth 1 -name 'davinci[0-9]*' | wc -l)
  fi
fi
[[ $NPUS_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "no NPU on this node: set NPUS_PER_NODE"
export NODES NODE_RANK MASTER_ADDR NPUS_PER_NODE
export MASTER_PORT=${MASTER_PORT:-8118} HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}

if [ "$NODE_RANK" -eq 0 ]; then
  exec bash "$root/scripts/run_npd.sh" "$@"
fi

python=${NPD_MINDSPORE_PYTHON:-$root/.envs/mindspore/bin/python}
command -v "$python" >/dev/null 2>&1 || fail "$python: no such interpreter; run scripts/setup_env.sh mindspore"
run_dir=$("$python" -c '
import sys
from npd_ascend.config import load_config
sets = [b for a, b in zip(sys.argv[2:], sys.argv[3:]) if a == "--set"]
print(load_config(sys.argv[1], sets).run.dir)' "$@")
# msrun takes a script, not a module, and starts the first python of PATH.
child=$root/npd_ascend/pipeline/child.py
bin=$(dirname "$(command -v "$python")")
export PATH=$bin:$PATH
mkdir -p "$run_dir/jobs" "$run_dir/logs"
echo "node $NODE_RANK of $NODES: waiting for training jobs in $run_dir/jobs" >&2

# A job is joined once; one that is written again is another try of it. done.json marks those that have ended.
marks=$(mktemp -d)
trap 'rm -rf "$marks"' EXIT
seen=$marks/seen
started=$marks/started
touch -d @0 "$seen"
touch "$started"
waited=0
while [ "$waited" -lt "${NODE_WAIT_S:-86400}" ]; do
  job=$(find "$run_dir/jobs" -name 'g[0-9]*-train.json' -newer "$seen" | sort | tail -n 1)
  name=$(basename "${job:-none}" .json)
  generation=${name#g}
  generation=${generation%-train}
  if [ -z "$job" ] || [ "$run_dir/generations/$generation/train/done.json" -nt "$job" ]; then
    if [ "$run_dir/report.html" -nt "$started" ]; then
      echo "node $NODE_RANK: the run has ended" >&2
      exit 0
    fi
    sleep 2
    waited=$((waited + 2))
    continue
  fi
  touch -r "$job" "$seen"
  waited=0
  echo "node $NODE_RANK: joins $name" >&2
  "$bin/msrun" --worker_num=$((NODES * NPUS_PER_NODE)) --local_worker_num="$NPUS_PER_NODE" \
    --node_rank="$NODE_RANK" --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --join=True \
    --log_dir="$run_dir/logs/$name-node$NODE_RANK" "$child" "$job" ||
    echo "node $NODE_RANK: $name ended with exit code $? (logs: $run_dir/logs/$name-node$NODE_RANK)" >&2
done
fail "no training job for ${NODE_WAIT_S:-86400} s"
