import sys

import pytest

from npd_ascend.errors import UserError
from npd_ascend.report.tensorboard import export


def test_without_the_package_one_clear_line(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="tensorboard package, which is not installed"):
        export(make_run(generations=0).root)


def test_curves_come_back(make_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    facts = make_run()
    export(facts.root)
    out = export(facts.root)  # replaces, does not add
    (path,) = out.glob("events.out.tfevents.*")
    points = {}
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert [s for s, _ in points["loss/total"]] == list(range(1, 121))
    assert [s for s, _ in points["accuracy"]] == [0, 60, 120]
    assert points["accuracy"][-1][1] == pytest.approx(0.65) and len(points["lag/forward"]) == 14
