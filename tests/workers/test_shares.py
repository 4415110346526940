"""What several workers have done of a shared job, as one meter tells it."""

from pathlib import Path

import pytest

from npd_ascend.progress import Meter
from npd_ascend.report.live import StageState
from npd_ascend.workers.shares import Shares, Tally


@pytest.fixture
def tally():
    """Factory: (rows, missing shards, longest) -> tally and its meter."""
    meters = []

    def make(rows, missing, longest=None):
        def meter(*args, **kwargs):
            meters.append(Meter(*args, silent=True, **kwargs))
            return meters[-1]

        return Tally(Shares("x", rows, Path(), lambda: set(missing), lambda: False, longest), meter), meters[-1]

    return make


def have(shards, samples, tokens=0, worked=0):
    return {"event": "have", "have": {str(i): n for i, n in shards.items()}, "samples": samples, "tokens": tokens,
            "worked": worked}  # fmt: skip


def test_each_sample_counts_once_and_what_was_there_is_no_work_of_this_job(tally):
    t, meter = tally([4, 4, 4], {1, 2})
    assert (meter.total, meter.done, meter.skipped) == (12, 4, 4)
    t.take(0, have({1: 2}, 2, 10))
    t.take(1, have({2: 3}, 1, 5))  # two of them stood in a dead worker's journal
    assert (meter.done, meter.skipped, meter.tokens) == (9, 6, 15)
    t.take(0, have({1: 2}, 0))  # said again
    t.take(1, have({1: 4}, 2, 9))  # another one goes on with it
    assert (meter.done, meter.skipped, meter.tokens) == (11, 6, 24)
    t.close(complete=True)
    assert meter.done == 12


def test_time_counts_while_one_of_them_works(tally):
    t, meter = tally([8], {0})
    t.take(0, {"event": "spent", "what": "start", "seconds": 5.0})
    assert meter.idle == 5.0
    t.take(1, {"event": "spent", "what": "compile", "seconds": 2.0})
    assert meter.idle == 2.0
    t.take(1, {"event": "spent", "what": "load", "seconds": 9.0})  # it was replaced, the other one went on
    assert meter.idle == 5.0


def test_time_to_go_follows_from_tokens_when_short_answers_end_first(tally):
    """100 answers of up to 64 tokens; after 10 s nothing but one short answer has ended."""
    t, meter = tally([100], {0}, longest=64)
    t.take(0, have({0: 0}, 0, worked=320))
    assert meter.expected == 6400  # at the most
    t.take(0, have({0: 16}, 16, 160, worked=320))
    assert meter.expected == 4000  # 640 tokens worked on by 16 ends: 40 each
    state = StageState("rollout")
    common = {"total": 100, "skipped": 0, "unit": "samples", "expected": 4000}
    state.update({"event": "begin", "done": 0, "tokens": 0, "seconds": 0.0, "worked": 0, **common})
    state.update({"event": "progress", "done": 16, "tokens": 160, "seconds": 10.0, "worked": 640, **common})
    assert state.eta() == pytest.approx(3360 / 64)  # by samples it would be 52.5 s as well only if all were alike
    state.update({"event": "progress", "done": 16, "tokens": 160, "seconds": 20.0, "worked": 1280, **common})
    assert state.eta() == pytest.approx(2720 / 64)  # it goes down although no further answer has ended
