#!/usr/bin/env bash
# One run over several nodes: the same command on each, with its own NODE_RANK.
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/start_node.sh configs/openpangu_1b_from_7b_2nodes.yaml
#   NODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 bash scripts/start_node.sh configs/openpangu_1b_from_7b_2nodes.yaml
#
# Node 0 runs the configuration (further arguments go to npd run). The others (npd join) become nodes of the run's own Ray
# cluster, through which node 0 starts workers there, and leave when the run ends; when node 0 is killed they wait for it
# to be started again. All nodes see the run directory, models and data under the same paths.
#
# Environment: NODES, NODE_RANK, MASTER_ADDR (address of node 0), MASTER_PORT (8118, msrun), NPD_RAY_PORT (6379, Ray),
# NODE_ADDR (address of this node, where it has several; Ray takes the one of its default route),
# NODE_WAIT_S (1800: how long nodes wait for each other), NODE_PLACE_S (60: how long a worker's node may be away before
# the others go on without it), ASCEND_RT_VISIBLE_DEVICES, HCCL_CONNECT_TIMEOUT (1800), HCCL_SOCKET_IFNAME.
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
[ "$NODE_RANK" -lt "$NODES" ] || fail "NODE_RANK $NODE_RANK is not below NODES $NODES"
[ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set: give the address of node 0 on every node"
export NODES NODE_RANK MASTER_ADDR MASTER_PORT=${MASTER_PORT:-8118}
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}

if [ "$NODE_RANK" -eq 0 ]; then
  exec bash "$root/scripts/run_npd.sh" "$@"
fi
exec env NPD_COMMAND=join bash "$root/scripts/run_npd.sh" "$@"
