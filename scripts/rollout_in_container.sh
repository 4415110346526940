#!/usr/bin/env bash
# Stands in for the rollout environment's interpreter where vLLM lives in a container of its own:
#
#   export NPD_ROLLOUT_PYTHON=/opt/npd/scripts/rollout_in_container.sh
#
# Runs python with the given arguments inside the container NPD_ROLLOUT_CONTAINER (default npd-rollout), in the same
# working directory, with stdin and stdout passed through. Both containers must see the run directory, models and
# data under the same paths. A worker ends when its stdin does, so it does not outlive the run.
set -euo pipefail
container=${NPD_ROLLOUT_CONTAINER:-npd-rollout}

if ! command -v docker >/dev/null 2>&1; then
  echo "error: no docker client here; mount /var/run/docker.sock and use docker/Dockerfile.mindspore" >&2
  exit 2
fi
pass=(-e "PYTHONUNBUFFERED=1")
while read -r name; do
  case $name in
  NPD_STARTED | VLLM_* | HF_* | ASCEND_RT_VISIBLE_DEVICES | TOKENIZERS_PARALLELISM | OMP_* | HCCL_*)
    pass+=(-e "$name=${!name}")
    ;;
  esac
done < <(compgen -e)
# docker exec passes the image's entry point by, which sources the vendor's environment; what that prints is not ours.
# shellcheck disable=SC2016
start='vendor() { local s=$1; shift; if [ -f "$s" ]; then source "$s" >/dev/null 2>&1 </dev/null; fi; }
for s in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/cann*/share/info/ascendnpu-ir/bin/set_env.sh \
  /usr/local/Ascend/nnal/atb/set_env.sh; do vendor "$s"; done
exec python3 "$@"'
exec docker exec -i -w "$PWD" "${pass[@]}" "$container" bash -c "$start" python3 "$@"
