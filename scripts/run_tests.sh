#!/usr/bin/env bash
# All checks: linter, formatter, types, tests in both environments. Arguments go to pytest in both, e.g. -m "not slow".
# Two processes share the files of the large suite (-n 0: one): while one compiles or waits, the other works.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
ms=${NPD_MINDSPORE_PYTHON:-.envs/mindspore/bin/python}
ro=${NPD_ROLLOUT_PYTHON:-.envs/rollout/bin/python}
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false GLOG_v=3 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR

"$ms" -m ruff check .
"$ms" -m ruff format --check --quiet . || {
  echo "error: files are not formatted: $ms -m ruff format ." >&2
  exit 1
}
"$ms" -m mypy
status=0
"$ms" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
"$ro" -m pytest -q -n 0 tests/rollout "$@" || status=$?
exit $status
