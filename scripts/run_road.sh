#!/usr/bin/env bash
# The whole road from a fine-tuned student over NPD to GRPO: two runs, the second from the first one's export.
#
#   bash scripts/run_road.sh configs/mini.yaml configs/mini_grpo.yaml
#
# Each run goes on where it stopped, and does nothing when it is finished, so the same command serves after any
# interruption. Environment: as scripts/run_npd.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -ne 2 ]; then
  echo "usage: bash scripts/run_road.sh NPD_CONFIG GRPO_CONFIG" >&2
  exit 2
fi
bash "$root/scripts/run_npd.sh" "$1"
# Where the first run has put its student is in its own settings.
student=$("${NPD_MINDSPORE_PYTHON:-$root/.envs/mindspore/bin/python}" -c \
  'import sys; from npd_ascend.config import load_config; print(load_config(sys.argv[1]).run.dir / "export")' "$1")
exec bash "$root/scripts/run_npd.sh" "$2" --set "models.student=$student" --set "models.teacher=$student"
