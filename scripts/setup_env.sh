#!/usr/bin/env bash
# Makes the two virtual environments: .envs/mindspore (annotate, train, npd itself) and .envs/rollout (vLLM).
# Does nothing when they stand and nothing that they are made from has changed.
#
#   bash scripts/setup_env.sh            both
#   bash scripts/setup_env.sh rollout    one of them
#
# PYTHON chooses the interpreter. 3.11 is the tested one and gets the versions of requirements/*.lock (scripts/lock.sh makes
# them); others get the newest versions that the requirements allow. Where PyPI's torch would bring CUDA along, point
# PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels. On Ascend nodes the vendor's images take the place of
# the rollout environment: set NPD_ROLLOUT_PYTHON, and it is left alone here.
#
# Rewards and benchmarks that run programs need bubblewrap. Where this is root on a system with apt-get, it is installed;
# elsewhere one line says how, and everything else works without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }

find_python() {
  for candidate in "${PYTHON:-}" python3.11 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  say "error: no Python 3.10-3.12 found (3.11 is the tested one); install it or set PYTHON=/path/to/python3.11"
  exit 2
}

# run STEP COMMAND...: keeps the output in the log of the environment $name and shows its end when the step fails.
run() {
  local step=$1 log=.envs/setup-$name.log
  shift
  if ! "$@" >"$log" 2>&1; then
    tail -n 25 "$log" >&2
    say "error: setting up failed at: $step (full log: $log)"
    exit 2
  fi
}

make_env() { # NAME REQUIREMENTS EXTRA
  local name=$1 requirements=$2 extra=$3 dir=.envs/$1 lock=${2%.txt}.lock stamp want locked=()
  stamp=$dir/.npd-stamp
  want=$({ cat "$requirements" "$lock" pyproject.toml scripts/setup_env.sh; pwd; } | sha256sum | cut -d' ' -f1)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && [ -x "$dir/bin/python" ]; then
    return
  fi
  python=${python:-$(find_python)}
  say "setting up $dir (a few minutes with a good connection) ..."
  rm -f "$stamp"
  [ -x "$dir/bin/python" ] || run "virtual environment $dir" "$python" -m venv "$dir"
  if "$dir/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    locked=(-c "$lock")
  fi
  # What is imported is compiled then; most of it never is.
  run "packages of $requirements" "$dir/bin/python" -m pip install --disable-pip-version-check --no-compile \
    "${locked[@]}" -r "$requirements" -e ".[$extra]"
  if [ "$name" = rollout ]; then
    # The torchvision that pip pairs with this torch does not load, and then vLLM does not import either.
    run "removing packages vLLM must not see" "$dir/bin/python" -m pip uninstall -y \
      torchvision torchaudio torchcodec triton
    run "importing vLLM" env VLLM_LOGGING_LEVEL=ERROR "$dir/bin/python" -c 'import vllm'
  else
    run "importing MindSpore and MindFormers" env GLOG_v=3 "$dir/bin/python" -c 'import mindspore, mindformers'
  fi
  echo "$want" >"$stamp"
}

sandbox() {
  command -v bwrap >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "installing bubblewrap ..."
    if apt-get install -y --no-install-recommends bubblewrap >.envs/bubblewrap.log 2>&1 ||
      { apt-get update && apt-get install -y --no-install-recommends bubblewrap; } >.envs/bubblewrap.log 2>&1; then
      return
    fi
  fi
  say "note: no bubblewrap, so programs that a model writes cannot be judged; as root: apt-get install bubblewrap"
}

mkdir -p .envs
exec 9>.envs/.lock
flock 9 # two scripts at once: the second waits and then finds everything done
which=${1:-all}
sandbox
case $which in all | mindspore | rollout) ;; *)
  say "error: unknown environment '$which'; use mindspore, rollout or nothing for both"
  exit 2
  ;;
esac
# Side by side, each in a process group of its own, which an interrupt must reach: pip would go on without us.
set -m
making=()
trap 'for pid in "${making[@]}"; do kill -- "-$pid" 2>/dev/null || true; done; exit 130' INT TERM
if [ "$which" != rollout ] && [ -z "${NPD_MINDSPORE_PYTHON:-}" ]; then
  make_env mindspore requirements/mindspore.txt dev &
  making+=($!)
fi
if [ "$which" != mindspore ] && [ -z "${NPD_ROLLOUT_PYTHON:-}" ]; then
  make_env rollout requirements/rollout-cpu.txt test &
  making+=($!)
fi
status=0
for pid in "${making[@]}"; do
  wait "$pid" || status=$?
done
exit $status
