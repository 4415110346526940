"""``npd plan --against``: NPD beside other loops, and what the ratio rests on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from npd_ascend.config import Config
from npd_ascend.errors import UserError
from npd_ascend.models.shapes import planned_spec
from npd_ascend.ops.plan import memory
from npd_ascend.ops.plan.devices import DEFAULT_NPU, find_npu
from npd_ascend.ops.plan.estimate import Passes, devices_of
from npd_ascend.ops.plan.loops import LOOPS, PAPER_HOURS, Cost, Setting, levers
from npd_ascend.ops.plan.paces import ENDS, INPUTS, Rates
from npd_ascend.ops.plan.text import aligned
from npd_ascend.ops.plan.workload import Workload
from npd_ascend.ops.plan.workload import workload as find_workload
from npd_ascend.registry import nearest


def setting(
    config: Config, device: str = DEFAULT_NPU, devices: int | None = None, workload: Workload | None = None
) -> Setting:
    """What a configuration distils, as the loops see it.

    Args:
        config: the run; epochs, refreshes and filter are its own.
        device: name of the NPU.
        devices: how many; None: as many as the configuration uses.
        workload: prompt statistics; None: found from the run or its prompt files.

    Raises:
        UserError: a model folder is not usable, or the device is unknown.
    """
    npu = find_npu(device)
    work = workload or find_workload(config)
    passes = Passes.of(config)
    asked = {name for names in passes.quantities.values() for name in names}
    student, teacher = planned_spec(config.models.student), planned_spec(config.models.teacher)
    room = memory.rollout_memory(config, student, npu, work.prompt_tokens + work.answer_tokens)
    return Setting(
        student,
        teacher,
        npu,
        devices or devices_of(config),
        work,
        float(config.train.epochs),
        passes.generations - 1,
        max(1, min(config.rollout.max_num_seqs, room.largest)),
        any(name.startswith("unconditioned") for name in asked),
    )


def against(s: Setting, names: Sequence[str]) -> str:
    """The comparison as text.

    Args:
        s: what is distilled.
        names: loops of ``LOOPS``.

    Raises:
        UserError: an unknown loop.
    """
    for name in names:
        if name not in LOOPS:
            raise UserError(
                f"--against {name}: there is no such loop; {nearest(name, LOOPS)}known: {', '.join(sorted(LOOPS))}"
            )
    chosen = ["npd", *dict.fromkeys(n for n in names if n != "npd")]
    return "\n".join(
        [*_heading(s), "", *_table(s, chosen), "", *_sensitivity(s, chosen), "", *_levers(s, chosen), "", *_inputs()]
    )


def _heading(s: Setting) -> list[str]:
    w = s.work
    return [
        f"{w.prompts:,.0f} prompts of {w.prompt_tokens:,.0f} tokens, answers of {w.answer_tokens:,.0f}, "
        f"{s.epochs:g} epochs, {s.refreshes} refresh(es), {s.devices} x {s.npu.name}, engines of "
        f"{s.engine_batch} sequences",
        "Estimates from shapes and the inputs below, none of which is fitted; nothing here was measured on an NPU.",
    ]


def _table(s: Setting, chosen: Sequence[str]) -> list[str]:
    costs = {name: {end: LOOPS[name](s, Rates.at(end)) for end in ENDS} for name in chosen}
    rows = [
        [
            "loop",
            "rollout",
            "score",
            "train",
            "weights",
            "h central",
            "h fast..slow",
            "x NPD",
            "fast..slow",
            "paper, Table 1",
        ]
    ]
    for name, by in costs.items():
        c = by["central"]
        ratio = {end: by[end].total / costs["npd"][end].total for end in ENDS}
        paper = PAPER_HOURS.get(name)
        rows.append(
            [
                name,
                *(f"{x / c.total:.0%}" for x in (c.rollout, c.score, c.train, c.weights)),
                _hours(c),
                f"{_hours(by['fast'])}..{_hours(by['slow'])}",
                f"{ratio['central']:.2f}",
                f"{ratio['fast']:.2f}..{ratio['slow']:.2f}",
                f"{paper:g} h, x {paper / PAPER_HOURS['npd']:.2f}" if paper else "-",
            ]
        )
    return aligned(rows)


def _sensitivity(s: Setting, chosen: Sequence[str]) -> list[str]:
    """One input at a time at either end, the others central, by how far it moves the ratios."""
    base = Rates.at("central")
    rows = []
    for name, i in INPUTS.items():
        ends = [_ratios(s, chosen, replace(base, **{name: value})) for value in (i.slow, i.fast)]
        rows.append((max(abs(a - b) for a, b in zip(*ends, strict=True)), name, i, ends))
    rows.sort(key=lambda row: row[0], reverse=True)
    out = [["input", "slow", "fast", *(f"{n} x NPD" for n in chosen[1:])]]
    for _, name, i, (slow, fast) in rows:
        ratios = (f"{a:.2f}..{b:.2f}" for a, b in zip(slow, fast, strict=True))
        out.append([name, f"{i.slow:g}", f"{i.fast:g}", *ratios])
    return ["What the ratio rests on (one input at its slow..fast value, the others central):", *aligned(out)]


def _ratios(s: Setting, chosen: Sequence[str], r: Rates) -> list[float]:
    own = LOOPS["npd"](s, r).total
    return [LOOPS[name](s, r).total / own for name in chosen[1:]]


def _levers(s: Setting, chosen: Sequence[str]) -> list[str]:
    r = Rates.at("central")
    eager = replace(r, launch_ms=INPUTS["launch_ms"].slow)
    out = [["lever", "NPD, h", *(f"{n} x NPD" for n in chosen[1:])]]
    tries = [(name, changed, r) for name, changed in levers(s).items()]
    tries += [("engines in eager mode, all loops", s, eager), ("synchronous trainers pad", s, replace(r, padded=0.45))]
    for name, changed, rates in tries:
        own = LOOPS["npd"](changed, rates)
        out.append(
            [
                name,
                _hours(own),
                *(f"{LOOPS[n](_same_work(s, changed), rates).total / own.total:.2f}" for n in chosen[1:]),
            ]
        )
    return ["What each lever gives (central inputs; the other loops get the same epochs and horizon):", *aligned(out)]


def _same_work(s: Setting, changed: Setting) -> Setting:
    return replace(s, epochs=changed.epochs, horizon=changed.horizon)


def _inputs() -> list[str]:
    rows = [["input", "slow", "central", "fast", "unit", "what", "source"]]
    rows += [[n, f"{i.slow:g}", f"{i.central:g}", f"{i.fast:g}", i.unit, i.what, i.source] for n, i in INPUTS.items()]
    return ["Inputs:", *aligned(rows)]


def _hours(c: Cost) -> str:
    return f"{c.total / 3600:.3g}"
