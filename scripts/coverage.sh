#!/usr/bin/env bash
# Which lines of the package the tests run, child processes included: table, total, and pages in build/coverage.
# Arguments go to pytest in both environments, e.g. -m "not slow" or a folder of tests; it takes about half as long again
# as the tests alone. Code that MindSpore compiles (construct, bprop) never runs as Python and does not count.
#
#   bash scripts/coverage.sh                             everything
#   bash scripts/coverage.sh -n 0 tests/store tests/rows       a part; the rollout environment joins for tests/rollout
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ms=${NPD_MINDSPORE_PYTHON:-.envs/mindspore/bin/python}
ro=${NPD_ROLLOUT_PYTHON:-.envs/rollout/bin/python}
export OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false GLOG_v=3 HF_HUB_OFFLINE=1 VLLM_LOGGING_LEVEL=ERROR
# Child processes run elsewhere, and find settings and data by these.
export COVERAGE_RCFILE=$PWD/pyproject.toml COVERAGE_FILE=$PWD/build/coverage/data
rm -rf build/coverage
mkdir -p build/coverage

status=0
parts=$(printf '%s\n' "$@" | grep '^tests' || true)
if [ -z "$parts" ] || grep -qv '^tests/rollout' <<<"$parts"; then
  "$ms" -m coverage run -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@" || status=$?
fi
if [ -z "$parts" ]; then
  "$ro" -m coverage run -m pytest -q -n 0 tests/rollout "$@" || status=$?
elif grep -q '^tests/rollout' <<<"$parts"; then
  "$ro" -m coverage run -m pytest -q -n 0 "$@" || status=$?
fi
"$ms" -m coverage combine --quiet
"$ms" -m coverage html --quiet -d build/coverage/pages
"$ms" -m coverage report
exit $status
