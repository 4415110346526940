"""Tables of docs/ascend.md against what the plan says now: memory beside the compiler's, hours beside the paper's."""

import re
from pathlib import Path

import pytest

from npd_ascend.config import load_config
from npd_ascend.models.shapes import planned_spec
from npd_ascend.ops.plan import estimate
from npd_ascend.ops.plan.devices import NPUS
from npd_ascend.ops.plan.memory import annotate_memory, train_memory
from npd_ascend.ops.plan.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["docs/ascend.md", "docs/ascend.zh.md"]
NPU = NPUS["910B2"]


def rows(page, after):
    """Cells of the table that follows a mark, without its head."""
    lines = (ROOT / page).read_text().split(after)[1].lstrip("\n").splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table if "---" not in line][1:]


@pytest.mark.parametrize("page", PAGES)
def test_memory_beside_the_compilers(page):
    table = rows(page, "<!-- compile_all -->")
    assert len(table) >= 11
    for name, graph, _, compiled, planned, *_ in table:
        config = load_config(ROOT / "configs" / f"{name}.yaml")
        role = "teacher" if "teacher" in graph else "student"
        spec = planned_spec(getattr(config.models, role))
        own = config.annotate if role == "teacher" else config.annotate_student
        memory = (
            train_memory(config, spec, NPU, recompute=config.train.recompute)
            if graph.startswith("train")
            else annotate_memory(config, spec, NPU, own.tensor_parallel)
        )
        assert float(planned) == pytest.approx(memory.needed / 2**30, abs=0.051), (name, graph)
        # The compiler's is a lower bound, and 2 GB are its margin; the plan must not be below, nor far above.
        low = float(compiled.lstrip("~"))
        assert low + 2 <= float(planned) <= 1.6 * low + 6, (name, graph)


def test_the_1b_is_planned_as_released():
    spec = planned_spec(Path("/models/openPangu-Embedded-1B-SFT"))
    assert spec.tie_embeddings and spec.qkv_bias and spec.o_bias and spec.parameters == pytest.approx(1.16e9, rel=0.005)


@pytest.mark.parametrize("page", PAGES)
def test_hours_beside_the_papers(page):
    table = rows(page, "estimates):\n" if page == PAGES[0] else "均为估计）：\n")
    for refreshes, lines in ((0, table[:4]), (1, [None] * 3 + table[4:])):
        config = load_config(ROOT / "configs" / "openpangu_1b_from_7b.yaml", [f"sync.refreshes={refreshes}"])
        e = estimate(config, workload=Workload(1.2e6, 300, 2000))
        parts = [["rollout"], ["annotate_teacher", "annotate_student"], ["train"], [s.stage for s in e.stages]]
        for line, stages in zip(lines, parts, strict=True):
            want = [sum(e.stage(s).hours(end) for s in stages) for end in ("central", "fast", "slow", "limit")]
            if line is not None:
                said = [float(x) for cell in line[2:4] for x in re.findall(r"[\d.]+", cell)]
                assert said == pytest.approx(want, rel=0.02), line
