"""The import contract: who may know whom, and where engines are. Read from the source, nothing is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import npd_ascend
from npd_ascend.config.stages import STAGES

PACKAGE = Path(npd_ascend.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
FILES = sorted(PACKAGE.rglob("*.py"))

STAGE_LAYERS = ("draw", "rollout", "reward", "annotate", "select", "pack", "train", "evaluate", "exposure")
"""``data`` is a stage (prepare) and a layer below the stages: they read prompts and tokenizers with it."""
TIERS = (
    ("visible", "interrupt", "arrays"), ("errors",), ("environments", "registry", "progress"), ("config",),
    ("out_of_memory", "store"), ("workers", "rows", "sync", "tasks"), ("models",), ("objectives", "data"),
    STAGE_LAYERS, ("recipes", "monitors", "bench"), ("ops", "report"), ("pipeline",), ("study",), ("api",),
    ("commands",), ("cli",), ("__init__",))  # fmt: skip
"""From the bottom to the top: a layer imports from tiers below its own, and from nowhere else."""
ENGINES = {
    "mindspore": (
        "models/",
        "objectives/",
        "annotate/",
        "exposure/",
        "train/",
        "ops/numerics.py",
        "ops/selftest.py",
        "ops/ascend/child.py",
        "ops/node_report/bench.py",
        "ops/node_report/operators.py",
        "study/prefill.py",
        "study/workbench.py",
    ),
    "mindformers": ("models/",),
    "vllm": ("rollout/engine.py", "rollout/extension.py"),
    "torch": ("rollout/check.py", "rollout/extension.py", "rollout/forward.py", "ops/hf_logits.py"),
    "ray": ("pipeline/cluster.py",),
    "torch_npu": (),
    "vllm_ascend": (),
}
"""Files, and layers with a slash, that may import an engine."""
HARNESS = {"lm_eval": ("bench/lm.py", "bench/harness.py", "tasks/rewards/ifeval.py"), "datasets": ("bench/harness.py",)}
"""The same of what only the rollout environment has for benchmarks."""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of what a file imports, wherever in it, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def between_layers() -> Iterator[tuple[str, str, str]]:
    """(layer, imported layer, where) of every import of the package that leaves its layer."""
    for path in FILES:
        for name, line in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package == "npd_ascend" and other not in (layer_of(path), "__version__"):
                yield layer_of(path), other, f"{path.relative_to(PACKAGE)}:{line} imports {name}"


def test_every_room_has_a_tier():
    layers = {layer_of(path) for path in FILES}
    assert layers == {layer for tier in TIERS for layer in tier}


def test_arrows_point_down():
    level = {layer: i for i, tier in enumerate(TIERS) for layer in tier}
    wrong = [where for layer, other, where in between_layers() if level[other] >= level[layer]]
    assert not wrong, "\n".join(wrong)


def test_no_stage_imports_a_stage():
    assert {s.module for s in STAGES.values()} <= {*STAGE_LAYERS, "data"}
    for path in FILES:
        if layer_of(path) in (*STAGE_LAYERS, "data"):
            others = [
                name
                for name, _ in imports(path)
                if name.startswith("npd_ascend.")
                and (name.split(".")[1] in STAGE_LAYERS or "stage" in name.split(".")[2:])
                and name.split(".")[1] != layer_of(path)
            ]
            assert not others, f"{path}: {others}"


def test_engines_are_imported_where_the_architecture_says():
    for path in FILES:
        place = path.relative_to(PACKAGE).as_posix()
        for name, line in imports(path):
            allowed = {**ENGINES, **HARNESS}.get(name.partition(".")[0])
            assert allowed is None or place.startswith(allowed), f"{place}:{line} imports {name}"


def test_what_is_registered_by_name_needs_no_engine():
    """Filters, checkers, sync policies, methods and recipes are also looked up where no engine is installed."""
    folders = (
        "select/filters",
        "objectives/terms",
        "objectives/token_weights",
        "tasks/known",
        "tasks/rewards",
        "sync/policies",
        "study/methods",
        "recipes",
        "monitors/backends",
        "bench/benchmarks",
    )
    for path in (p for folder in folders for p in (PACKAGE / folder).glob("*.py")):
        roots = {name.partition(".")[0] for name, _ in imports(path)}
        assert not roots & ENGINES.keys(), path


def test_the_line_of_rooms_in_the_documentation_is_true():
    """Its arrows point from higher tiers to lower ones, and its table has a row for every folder."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    line = re.search(r"^    cli ─► .*$", text, re.MULTILINE)
    assert line, "docs/architecture.md: no line of layers"
    level = {layer: i for i, tier in enumerate(TIERS) for layer in tier} | {"stages": TIERS.index(STAGE_LAYERS)}
    tiers = [[level[layer.strip()] for layer in part.split(",")] for part in line.group().split("─►")]
    assert all(min(upper) > max(lower) for upper, lower in zip(tiers, tiers[1:], strict=False)), line.group()
    rows = re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \|", text, re.MULTILINE)
    named = {layer for row in rows for layer in re.findall(r"`(\w+)/`", row)}
    assert named == {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
