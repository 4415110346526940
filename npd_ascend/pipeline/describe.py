"""``--dry-run``: the resolved configuration, what stands already, what would be done and what it would cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from npd_ascend.config import Config, dump_config
from npd_ascend.errors import UserError
from npd_ascend.ops.environments import Environments, resolve_device
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.ops.plan import estimate, render
from npd_ascend.pipeline.checks import check_config
from npd_ascend.pipeline.steps import Step, StepBuilder
from npd_ascend.store.layout import RunDir


def describe(config: Config) -> str:
    """Text of a dry run; writes nothing.

    Raises:
        UserError: whatever would stop the run before its first stage.
    """
    check_config(config)
    device = resolve_device(config.device)
    environments, nodes = Environments.find(), Nodes.from_environment()
    placement = Placement.of(config, device.target)
    placement.check(config, nodes.count)
    run = RunDir(config.run.dir)
    steps = StepBuilder(config, run, device, remember_hashes=False)
    lines = [
        "# resolved configuration",
        dump_config(config).rstrip(),
        "",
        "# device",
        f"{device.target}, {device.dtype}; MindSpore: {environments.mindspore}; rollout: {environments.rollout}",
        f"{placement.describe()}; nodes: {nodes.count}",
        "",
        f"# stages ({run.root})",
    ]
    lines += [f"  {name:<24} {state}" for name, state in _states(config, steps)]
    lines += ["", "# cost", render(estimate(config))]
    return "\n".join(lines)


def _states(config: Config, steps: StepBuilder) -> list[tuple[str, str]]:
    """Each step with ``done`` or ``to do``; generations that depend on the lag are named as possible."""
    out = [("prepare", _state(steps.prepare))]
    dynamic = config.sync.policy == "kl"
    generations = (config.sync.refreshes if dynamic else len(config.sync_points())) + 1
    for g in range(generations):
        note = " (if the lag reaches sync.epsilon)" if g and dynamic else ""
        makers: dict[str, Callable[[], Step]] = {"rollout": partial(steps.rollout, g)}
        if config.needs_teacher:
            makers["annotate_teacher"] = partial(steps.annotate, g, "teacher")
        if config.needs_scores:
            makers["annotate_student"] = partial(steps.annotate, g, "student")
        makers |= {name: partial(getattr(steps, name), g) for name in ("select", "pack", "train")}
        out += [(f"g{g:03d} {name}", _state(make) + note) for name, make in makers.items()]
    if config.evaluate.prompts:
        out.append(("evaluate", "start, " + ("each sync, " if config.evaluate.at_sync else "") + "end"))
    return out


def _state(make: Callable[[], Step]) -> str:
    try:
        return "done" if make().complete else "to do"
    except UserError:
        return "to do"  # its inputs are not there yet
