"""The configuration's models: do they speak the same ids, and do they fit on a device."""

from __future__ import annotations

from npd_ascend.data.compat import agree, check_pair
from npd_ascend.errors import UserError
from npd_ascend.ops.doctor.finding import Finding, error, ok, warning
from npd_ascend.ops.doctor.registry import Patient, check
from npd_ascend.ops.environments import resolve_device
from npd_ascend.ops.plan import estimate
from npd_ascend.ops.plan.devices import DEFAULT_NPU, find_npu
from npd_ascend.ops.plan.workload import Workload


@check
def models(p: Patient) -> list[Finding]:
    """Vocabulary, template, stop tokens and logits' widths of teacher and student; device settings."""
    if p.config is None:
        return []
    c, m = p.config, p.config.models
    try:
        check_pair(m.teacher, m.student, m.tokenizer, m.trust_remote_code, c.data)
        both = agree(m.tokenizer or m.student, c.data, m.student, m.teacher, trust_remote_code=m.trust_remote_code)
        device = resolve_device(c.device)
    except UserError as e:
        return [error(str(e))]
    good = ok(f"configuration valid; teacher and student fit together; device {device.target}, {device.dtype}")
    return [good, *(warning(r.text, r.remedy) if r.level == "warning" else ok(r.text) for r in both.remarks)]


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
        return []  # told by the checks of models and devices
    tight = [s for s in cost.stages if s.memory is not None and not s.memory.fits]
    # vLLM queues what its cache cannot hold, so only a stage that cannot hold a single row fails.
    fatal = [s for s in tight if s.memory is not None and (s.stage != "rollout" or not s.memory.largest)]
    lines = {a.split(" does not fit")[0]: a for a in cost.advice if " does not fit" in a}
    if fatal:
        remedy = "see npd plan; smaller micro_batch, vocab_chunk_rows or row_length"
        return [error(lines[s.stage], remedy) for s in fatal]
    return [ok(f"every stage fits on a {cost.npu.name} (estimate)")]
