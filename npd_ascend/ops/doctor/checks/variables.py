"""Environment variables that make runs fail, or fail only after hours."""

from __future__ import annotations

from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check

_PATIENCE_S = 1800


@check
def variables(p: Patient) -> list[Finding]:
    """Each with what it does and how to set it."""
    env, out = p.machine.env, []
    ascend = p.target == "ascend"
    plugins = env.get("VLLM_PLUGINS")
    if plugins is not None:
        needed = ["npd_pangu"] + ["ascend"] * ascend
        missing = [n for n in needed if n not in plugins.split(",")]
        if missing:
            out.append(
                error(
                    f"VLLM_PLUGINS={plugins}: vLLM then loads no other plug-in, so not {', '.join(missing)}",
                    f"unset VLLM_PLUGINS, or add {','.join(missing)} to it",
                )
            )
    if not ascend:
        return out or [ok("environment variables")]

    layout = env.get("VLLM_ASCEND_ENABLE_NZ", "0")
    if layout != "0":
        out.append(
            error(
                f"VLLM_ASCEND_ENABLE_NZ={layout}: weights in NZ layout cannot be reloaded in place",
                "set VLLM_ASCEND_ENABLE_NZ=0",
            )
        )
    timeout = env.get("HCCL_CONNECT_TIMEOUT", "120")
    if not timeout.isdigit():
        out.append(error(f"HCCL_CONNECT_TIMEOUT={timeout}: not a number of seconds", f"set it to {_PATIENCE_S}"))
    elif int(timeout) < _PATIENCE_S:
        out.append(
            warning(
                f"HCCL_CONNECT_TIMEOUT is {timeout} s: a rank that compiles longer ends in EI0006",
                f"export HCCL_CONNECT_TIMEOUT={_PATIENCE_S}",
            )
        )
    for name in ("RANK_TABLE_FILE", "MS_ROLE", "RANK_ID", "DEVICE_ID"):
        if name in env:
            out.append(
                error(
                    f"{name}={env[name]} is left from another launcher: processes would join its job",
                    f"unset {name}; msrun sets what it needs",
                )
            )
    if not any("atb" in part for part in env.get("LD_LIBRARY_PATH", "").split(":")):
        out.append(
            warning(
                "NNAL (libatb.so) is not in LD_LIBRARY_PATH: vllm-ascend will not load",
                "source /usr/local/Ascend/nnal/atb/set_env.sh; the run script does when it is there",
            )
        )
    if env.get("ASCEND_LAUNCH_BLOCKING") == "1":
        out.append(
            warning(
                "ASCEND_LAUNCH_BLOCKING=1: every kernel waits, runs are many times slower",
                "unset it when you do not debug",
            )
        )
    return out or [ok("environment variables")]


@check
def torch_without_an_npu(p: Patient) -> list[Finding]:
    """torch-npu is imported by torch itself and fails where there is no device."""
    if p.target == "ascend" or p.environments is None or p.machine.env.get("TORCH_DEVICE_BACKEND_AUTOLOAD") == "0":
        return []
    found = p.machine.run(
        str(p.environments.rollout), "-c", "import importlib.util as u; print(u.find_spec('torch_npu') is not None)"
    )
    if (found or "").strip() == "True":
        return [
            error(
                "torch-npu is installed but no NPU is used: importing torch fails",
                "export TORCH_DEVICE_BACKEND_AUTOLOAD=0",
            )
        ]
    return []
