"""The configuration's models and prompts: what a run would refuse, found by the functions that it refuses it with."""

from __future__ import annotations

from collections.abc import Callable

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.inputs import FIRST_ROWS, NOT_READ, check_engine, check_models, check_names, check_prompts, settle
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.ops.plan import estimate
from npd_ascend.ops.plan.devices import DEFAULT_NPU, find_npu
from npd_ascend.ops.plan.workload import Workload


@check
def settings(p: Patient) -> list[Finding]:
    """Names that the configuration mentions, and devices for all of its workers and ranks."""

    def look(config: Config) -> None:
        check_names(config)
        Placement.of(config, resolve_device(config.device).target).check(config, Nodes.from_environment().count)

    def said(config: Config) -> str:
        device = resolve_device(config.device)
        return f"configuration valid; device {device.target}, {device.dtype}"

    return _told(p, look, said)


@check
def models(p: Patient) -> list[Finding]:
    """Tokens, templates, configs and weight files of teacher and student."""
    found: list[Finding] = []

    def look(config: Config) -> None:
        p.agreement = check_models(config) or settle(config)
        found.extend(warning(r.text, r.remedy) if r.level == "warning" else ok(r.text) for r in p.agreement.remarks)

    return _told(p, look, lambda _: f"teacher and student fit together; {NOT_READ}") + found


@check
def prompts(p: Patient) -> list[Finding]:
    """The tokenizer, its template and the first prompts, as the first stage will take them; and whether vLLM will."""
    if p.config is None:
        return []
    try:
        counts = check_prompts(p.config, p.agreement)
        check_engine(p.config, p.target, counts["longest_prompt"])
    except UserError as e:
        return [error(str(e))]
    seen = f"prompts: {counts['prompts']} looked at (the first {FIRST_ROWS} of each file)"
    if not counts["prompts"]:
        return [warning(f"{seen}, all of them longer than data.max_prompt_tokens", "raise it")]
    return [ok(f"{seen}, longest {counts['longest_prompt']} tokens")]


def _told(p: Patient, look: Callable[[Config], object], said: Callable[[Config], str]) -> list[Finding]:
    """What ``look`` refuses, or what is ``said`` when it does not."""
    if p.config is None:
        return []
    try:
        look(p.config)
        return [ok(said(p.config))]
    except UserError as e:
        return [error(str(e))]


@check
def device_memory(p: Patient) -> list[Finding]:
    """Each stage's need of device memory, by the plan."""
    if p.config is None or p.target == "cpu":
        return []
    smi = p.machine.npu_smi
    name = smi.chips[0].name if smi and smi.chips else DEFAULT_NPU
    longest = Workload(1, p.config.data.max_prompt_tokens, p.config.rollout.max_new_tokens)
    try:
        find_npu(name)
        cost = estimate(p.config, device=name, workload=longest)
    except UserError:
        return []  # reported by the checks of models and devices
    tight = [s for s in cost.stages if s.memory is not None and not s.memory.fits]
    # vLLM queues what its cache cannot hold, so only a stage that cannot hold a single row fails.
    fatal = [s for s in tight if s.memory is not None and (s.stage != "rollout" or not s.memory.largest)]
    lines = {a.split(" does not fit")[0]: a for a in cost.advice if " does not fit" in a}
    if fatal:
        remedy = "see npd plan; smaller micro_batch, vocab_chunk_rows or row_length"
        return [error(lines[s.stage], remedy) for s in fatal]
    return [ok(f"every stage fits on a {cost.npu.name} (estimate)")]
