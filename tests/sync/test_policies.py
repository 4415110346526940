"""Spans of generations cover the run without gap or overlap; ``kl`` decides while training."""

import pytest

from npd_ascend.config.load import parse_config
from npd_ascend.config.schema import RolloutConfig, SyncConfig
from npd_ascend.errors import UserError
from npd_ascend.sync.registry import Moment, check, policy_of


def config(**sync):
    return parse_config({"run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"},
                         "data": {"prompts": ["p"]}, "sync": sync}, "test")  # fmt: skip


@pytest.mark.parametrize("refreshes", [0, 1, 2, 3])
def test_static_spans_tile_the_run(refreshes):
    c = config(refreshes=refreshes)
    at, spans = 0.0, []
    for g in range(refreshes + 1):
        spans.append(policy_of(c).span(g, at))
        at = spans[-1].end
    assert at == c.train.epochs and [s.last for s in spans] == [False] * refreshes + [True]
    assert [s.start for s in spans] == pytest.approx([10 * g / (refreshes + 1) for g in range(refreshes + 1)])
    assert all(s.snapshot == s.end for s in spans[:-1]) and spans[-1].snapshot is None


def test_lead_takes_the_snapshot_earlier():
    s = policy_of(config(refreshes=1, lead=0.5)).span(0, 0.0)
    assert (s.end, s.snapshot) == (5.0, 4.5)
    assert policy_of(config(refreshes=1, lead=7)).span(0, 0.0).snapshot == 0.0


def test_given_points():
    assert policy_of(config(at_epochs=[2, 3])).span(1, 2.0).end == 3


def test_kl_ends_by_lag_until_the_last():
    c = config(policy="kl", refreshes=1)
    first, last = policy_of(c).span(0, 0.0), policy_of(c).span(1, 4.2)
    assert (first.end, first.last) == (None, False) and (last.end, last.last) == (10.0, True)


@pytest.mark.parametrize(("lag", "asked"), [(None, False), (0.19, False), (0.2, True), (3.0, True)])
def test_kl_asks_for_a_refresh_when_the_lag_reaches_epsilon(lag, asked):
    policy = policy_of(config(policy="kl", refreshes=1, epsilon=0.2))
    answer = policy.refresh(Moment(0, 0.0, 1.5, lag, None))
    assert (answer is not None) == asked and policy.lag_bound == 0.2
    if answer:
        assert (answer.reason, answer.why) == ("lag", f"lag {lag:.4f} has reached 0.2")
    assert policy_of(config()).refresh(Moment(0, 0.0, 1.5, lag, None)) is None and policy_of(config()).lag_bound is None


@pytest.mark.parametrize(
    ("sync", "message"),
    [
        ({"at_epochs": [1, 10]}, "sync.at_epochs has 10.0, not before the end at train.epochs = 10"),
        ({"policy": "kl", "lag_every": 0}, "set sync.lag_every above 0"),
        ({"policy": "kls"}, "there is no sync policy 'kls'; did you mean kl[?] known: kl, static"),
    ],
)
def test_settings_that_a_policy_cannot_follow(sync, message):
    with pytest.raises(UserError, match=message):
        check(config(**sync))


def test_answers_that_never_change_are_not_refreshed():
    fixed = config(refreshes=1).model_copy(update={"rollout": RolloutConfig(source="teacher")})
    with pytest.raises(UserError, match="rollout.source teacher never changes: set sync.refreshes: 0"):
        check(fixed)
    check(fixed.model_copy(update={"sync": SyncConfig(refreshes=0)}))
