#!/usr/bin/env bash
# One command from configuration to student; run it again to go on where it stopped.
#
#   bash scripts/run_npd.sh configs/mini.yaml
#   bash scripts/run_npd.sh CONFIG --dry-run | --stage annotate | --set train.lr=2e-5 | --redo
#
# Environment: CONFIG (when no argument is given), ASCEND_HOME (default /usr/local/Ascend),
# NPD_MINDSPORE_PYTHON and NPD_ROLLOUT_PYTHON (interpreters of ready-made images), NPD_COMMAND (run; start_node.sh: join).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ascend=${ASCEND_HOME:-/usr/local/Ascend}

if [ $# -eq 0 ] || [[ $1 == -* ]]; then
  if [ -z "${CONFIG:-}" ]; then
    echo "usage: bash scripts/run_npd.sh CONFIG [--dry-run] [--stage STAGE] [--set section.key=value] [--redo]" >&2
    exit 2
  fi
  set -- "$CONFIG" "$@"
fi

# The vendor's scripts read variables that are not set, may run commands that fail, and take what stands in "$@" for
# their own options; hence a function, whose "$@" is empty once the path is gone.
vendor() {
  local script=$1
  shift
  [ -f "$script" ] || return 0
  set +eu
  # shellcheck disable=SC1090
  source "$script"
  set -eu
}
for script in "$ascend/cann/set_env.sh" "$ascend/ascend-toolkit/set_env.sh" "$ascend/nnal/atb/set_env.sh"; do
  vendor "$script"
done

bash "$root/scripts/setup_env.sh"
exec "${NPD_MINDSPORE_PYTHON:-$root/.envs/mindspore/bin/python}" -m npd_ascend.cli "${NPD_COMMAND:-run}" "$@"
