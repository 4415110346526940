"""``--dry-run``: the resolved configuration, what exists already, what would be done and what it would cost."""

from __future__ import annotations

from collections.abc import Collection

from npd_ascend.config import Config, dump_config
from npd_ascend.config.job import Device
from npd_ascend.environments import Environments
from npd_ascend.errors import UserError
from npd_ascend.models.shapes import missing, said_of
from npd_ascend.ops.environments import resolve_device, visible_npus
from npd_ascend.ops.inputs import check_cuts, check_names
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.ops.plan import estimate, estimate_here, render
from npd_ascend.pipeline import launch
from npd_ascend.pipeline.checks import check_config
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.recipes import find
from npd_ascend.store.layout import RunDir
from npd_ascend.sync.registry import policy_of


def describe(config: Config) -> str:
    """Text of a dry run; writes nothing. Checkpoints whose shape is known and NPUs may still be missing; the text says
    which are, and that nothing was checked that takes them.

    Raises:
        UserError: whatever else would stop the run before its first stage.
    """
    recipe = find(config.run.recipe)
    absent = missing(config.models.student, config.models.teacher)
    if absent:
        check_names(config)
        check_cuts(config)
    else:
        check_config(config)
    device, where = _device(config)
    environments = Environments.find()
    outline = Outline(StepBuilder(config, RunDir(config.run.dir), device, remember_hashes=False))
    recipe(config, outline)
    lines = [
        "# resolved configuration",
        dump_config(config).rstrip(),
        "",
        "# device",
        f"{device.target}, {device.dtype}; MindSpore: {environments.mindspore}; rollout: {environments.rollout}",
        where,
        *(f"  {line}" for line in launch.describe(config, Nodes.from_environment())),
        *(["", "# models", said_of(absent) + "; tokenizers, templates and weights are not checked"] if absent else []),
        "",
        f"# stages ({config.run.dir})",
        *(f"  {name:<32} {state}" for name, state in outline.lines),
        "",
        "# cost",
        render(estimate_here(config) if device.target == "cpu" else estimate(config, assume=True)),
    ]
    return "\n".join(lines)


def _device(config: Config) -> tuple[Device, str]:
    """What the run will use, and which of its devices for what."""
    if config.device.target == "ascend" and not visible_npus():
        dtype = config.device.dtype if config.device.dtype != "auto" else "bfloat16"
        device = Device(target="ascend", dtype=dtype, max_device_memory=config.device.max_device_memory)
        return device, "no NPU is visible here, so the run would stop, and its placement is not checked"
    device, nodes = resolve_device(config.device), Nodes.from_environment()
    placement = Placement.of(config, device.target)
    placement.check(config, nodes.count)
    return device, f"{placement.describe()}; nodes: {nodes.count}"


class Outline:
    """Walks a recipe and notes of each stage whether it is done; generations that may not come are named
    with their condition.

    Args:
        steps: of the run.

    Attributes:
        lines: (stage, state).
    """

    def __init__(self, steps: StepBuilder):
        self._steps, self._policy = steps, policy_of(steps.config)
        self.lines: list[tuple[str, str]] = []

    def __call__(
        self, stage: str, generation: int = -1, *, quantities: Collection[str] = (), evaluation: str = ""
    ) -> None:
        try:
            step = self._steps.step(stage, generation, quantities=quantities, evaluation=evaluation)
            state = "done" if step.complete else "to do"
        except UserError:
            state = "to do"  # its inputs are not there yet
        note = f" ({self._policy.condition})" if generation > 0 and self._policy.condition else ""
        name = f"g{generation:03d} {stage}" if generation >= 0 else stage
        self.lines.append((f"{name} {evaluation}".rstrip(), state + note))

    def refresh(self, generation: int) -> bool:
        return not self._policy.span(generation, 0.0).last

    def export(self, generation: int) -> None:
        """Costs nothing that a line is worth."""
