#!/usr/bin/env bash
# Builds the documentation site in build/site, with pages of the interface from the docstrings, and checks every internal
# link and anchor; any fault is an error. Needs neither engine: its own small environment, .envs/docs, is made the first
# time (NPD_DOCS_PYTHON names another interpreter that has the packages of requirements/docs.txt).
#
#   bash scripts/build_docs.sh && python3 -m http.server -d build/site
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${NPD_DOCS_PYTHON:-}
if [ -z "$python" ]; then
  python=.envs/docs/bin/python
  stamp=.envs/docs/.npd-stamp
  want=$(cat requirements/docs.txt requirements/docs.lock | sha256sum | cut -d' ' -f1)
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv .envs/docs
    "$python" -m pip install --quiet --disable-pip-version-check -c requirements/docs.lock -r requirements/docs.txt
    echo "$want" >"$stamp"
  fi
fi

# The sources keep their places, so links between them work here as they do in the repository.
rm -rf build/docs build/site
mkdir -p build/docs/assets/mini
cp -r README.md README.zh.md CONTRIBUTING.md CHANGELOG.md LICENSE docs examples configs build/docs/
cp assets/mini/README.md build/docs/assets/mini/
find build/docs -name __pycache__ -prune -exec rm -rf {} +

NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build
"$python" docs/site/check_links.py build/site
