#!/usr/bin/env bash
# Makes the lock files of requirements/ anew, which scripts/setup_env.sh and scripts/build_docs.sh install from: the exact
# version of every package. Nothing is installed, packages are only resolved; that takes a few minutes.
#
#   bash scripts/lock.sh               what is locked stays where the requirements still allow it
#   bash scripts/lock.sh --upgrade     the newest versions that the requirements allow
#
# Run it after changing requirements/*.txt or the dependencies in pyproject.toml. PYTHON chooses the interpreter, which
# must be of the tested version, 3.11.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3.11}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "error: lock files are made with Python 3.11; set PYTHON=/path/to/python3.11" >&2
  exit 2
}
"$python" -m venv "$work/env"

lock() { # NAME, WHAT TO INSTALL...
  local name=$1 lock=requirements/$1.lock keep=()
  shift
  if [ "${upgrade:-}" != --upgrade ] && [ -f "$lock" ]; then
    keep=(-c "$lock")
  fi
  "$work/env/bin/python" -m pip install --disable-pip-version-check --quiet --dry-run --ignore-installed \
    --report "$work/$name.json" "${keep[@]}" "$@"
  "$python" - "$work/$name.json" >"$work/$name.lock" <<'EOF'
import json
import re
import sys

print("# Exact versions for Python 3.11, made by scripts/lock.sh. Used as constraints, so packages that another platform")
print("# does not need are not installed there.")
found = {}
for item in json.load(open(sys.argv[1], encoding="utf-8"))["install"]:
    about = item["metadata"]
    # Without a local part such as +cpu: which build is taken is the index's to say.
    found[re.sub(r"[-_.]+", "-", about["name"]).lower()] = about["version"].partition("+")[0]
found.pop("npd-ascend", None)
for name in sorted(found):
    print(f"{name}=={found[name]}")
EOF
  mv "$work/$name.lock" "$lock"
  echo "$lock: $(grep -vc '^#' "$lock") packages"
}

upgrade=${1:-}
lock mindspore -r requirements/mindspore.txt -e ".[dev]"
lock rollout-cpu -r requirements/rollout-cpu.txt -e ".[test]"
lock docs -r requirements/docs.txt
