"""Spans of generations cover the run without gap or overlap."""

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.pipeline.sync import span


def config(**sync):
    return parse_config({"run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"},
                         "data": {"prompts": ["p"]}, "sync": sync}, "test")  # fmt: skip


@pytest.mark.parametrize("refreshes", [0, 1, 2, 3])
def test_static_spans_tile_the_run(refreshes):
    c = config(refreshes=refreshes)
    at, spans = 0.0, []
    for g in range(refreshes + 1):
        spans.append(span(c, g, at))
        at = spans[-1].end
    assert at == c.train.epochs and [s.last for s in spans] == [False] * refreshes + [True]
    assert [s.start for s in spans] == pytest.approx([10 * g / (refreshes + 1) for g in range(refreshes + 1)])
    assert all(s.snapshot == s.end for s in spans[:-1]) and spans[-1].snapshot is None


def test_lead_takes_the_snapshot_earlier():
    s = span(config(refreshes=1, lead=0.5), 0, 0.0)
    assert (s.end, s.snapshot) == (5.0, 4.5)
    assert span(config(refreshes=1, lead=7), 0, 0.0).snapshot == 0.0


def test_given_points():
    assert span(config(at_epochs=[2, 3]), 1, 2.0).end == 3


def test_kl_ends_by_lag_until_the_last():
    c = config(policy="kl", refreshes=1)
    first, last = span(c, 0, 0.0), span(c, 1, 4.2)
    assert (first.end, first.last) == (None, False) and (last.end, last.last) == (10.0, True)
