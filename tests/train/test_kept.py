"""A worker that has trained trains again without compiling, to the bits of one that has not."""

import pytest

pytest.importorskip("mindspore")

from mindspore.common import api  # noqa: E402

from npd_ascend.train.stage import Kept, run  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]


@pytest.fixture
def compiled(monkeypatch):
    """Names of the cells that MindSpore has compiled since."""
    names: list[str] = []
    compile_ = api._CellGraphExecutor.compile

    def noting(self, cell, *args, **kwargs):
        graph, new = compile_(self, cell, *args, **kwargs)
        if new:
            names.append(type(cell).__name__)
        return graph, new

    monkeypatch.setattr(api._CellGraphExecutor, "compile", noting)
    return names


def test_a_second_generation_compiles_nothing(world, rows_of, tensors_of, compiled):
    first, again, alone = (world.job(name, student=world.student()) for name in ("first", "again", "alone"))
    kept = Kept()
    run(first, kept)
    assert {"Accumulate", "Update", "Divergence"} <= {*compiled}
    compiled.clear()
    run(again, kept)
    assert compiled == []
    run(alone, Kept())
    assert "Accumulate" in compiled
    bits = [{k: v.tobytes() for k, v in tensors_of(j.out / "next").items()} for j in (first, again, alone)]
    assert bits[0] == bits[1] == bits[2]
    for kind, what in (("train", "loss"), ("lag", "forward")):
        rows = [[r[what] for r in rows_of(job, kind)] for job in (first, again, alone)]
        assert rows[0] and rows[0] == rows[1] == rows[2]
