"""Advantages of groups against loops over them."""

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.schema import AdvantageConfig
from npd_ascend.errors import UserError
from npd_ascend.select import stage
from npd_ascend.select.advantages import advantages
from npd_ascend.store.dataset import Dataset


def naive(group, value, baseline, scale):
    out = np.zeros(len(value))
    for g in set(group.tolist()):
        mine = np.flatnonzero(group == g)
        for i in mine:
            others = [value[j] for j in mine if j != i]
            off = value[i] - (np.mean(others) if baseline == "leave_one_out" else np.mean(value[mine]))
            out[i] = off / (np.std(value[mine], ddof=1) + 1e-4) if scale == "std" else off
    return out


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std"])
def test_against_loops(baseline, scale):
    rng = np.random.default_rng(0)
    group, value = rng.integers(0, 6, 60), rng.integers(0, 3, 60).astype(float)
    value[group == 2] = 1.0
    found = advantages(group, value, AdvantageConfig(baseline=baseline, scale=scale))
    np.testing.assert_allclose(found.advantage, naive(group, value, baseline, scale), atol=1e-6)
    assert found.dropped.tolist() == (group == 2).tolist()
    assert found.summary["groups"] == 6 and found.summary["equal"] == 1 and not found.summary["idle"]
    assert found.summary["mean"] == pytest.approx(value.mean())


def test_equal_groups():
    group, value = np.array([0, 0, 1, 1, 2, 2]), np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    found = advantages(group, value, AdvantageConfig())
    assert found.dropped.tolist() == [True] * 4 + [False] * 2
    assert (found.summary["equal_high"], found.summary["equal_low"]) == (1, 1)
    assert not advantages(group, value, AdvantageConfig(keep_equal=True)).dropped.any()
    # 0.1 + 0.2 in another order is another number, but the values themselves are equal.
    assert (
        advantages(np.zeros(3, int), np.full(3, 0.1 + 0.2), AdvantageConfig(scale="std")).advantage.tolist() == [0] * 3
    )


def test_where_all_are_equal_one_group_stays():
    found = advantages(np.array([5, 5, 3, 3]), np.zeros(4), AdvantageConfig())
    assert found.dropped.tolist() == [False, False, True, True] and found.summary["idle"]
    assert not found.advantage.any()


def test_groups_of_one():
    with pytest.raises(UserError, match="set rollout.samples to 2 or more"):
        advantages(np.array([0, 0, 1]), np.zeros(3), AdvantageConfig())


def rewarded(generation, values):
    """The rewards of a generation, whose samples are pairs."""
    rewards = Dataset(generation.root / "rewards", "rewards", "w")
    for i, s in generation._shards():
        n = s.stop - s.start
        parts = pa.array([[float(v)] for v in values[s]], pa.list_(pa.float32()))
        rewards.write_table(i, pa.table({"sample_id": generation.ids[s], "value": values[s], "parts": parts}))
        assert n == len(parts)
    rewards.finish(len(generation.sizes))
    return rewards.folder


@pytest.fixture
def pairs(generation, monkeypatch):
    """Samples 2i and 2i + 1 answer one prompt."""
    real = Dataset.read_all

    def read_all(self, columns=None):
        if columns == ["prompt_index"]:
            return pa.table({"prompt_index": np.arange(sum(generation.sizes)) // 2})
        return real(self, columns)

    monkeypatch.setattr(Dataset, "read_all", read_all)
    return generation


def test_selection_has_advantages_and_drops_equal_groups(pairs):
    values = np.array([1, 0, 1, 1, 0, 0, 2, 0, 1, 0, 0, 0], float)
    job = pairs.job(filter="none", warn_keep_below=0.8).model_copy(update={"rewards": rewarded(pairs, values)})
    stage.run(job)
    table, extra = pairs.result().read_all(), pairs.result().extra
    np.testing.assert_allclose(table["advantage"].to_numpy(), naive(np.arange(12) // 2, values, "mean", "none"))
    assert table["reward"].to_pylist() == values.tolist()
    reasons = table["reason"].to_pylist()
    assert [r == "equal" for r in reasons] == [i // 2 in (1, 2, 5) for i in range(12)]
    assert reasons[1] == "empty"  # an empty answer's value counts in its group, and it is not trained on
    assert extra["groups"]["equal"] == 3 and extra["reasons"]["equal"] == 6
    assert not extra["low_keep_rate"]  # five of six that the filter could keep


def test_rewards_of_other_samples(pairs):
    folder = rewarded(pairs, np.zeros(12))
    pairs.ids = pairs.ids + 1
    pairs.write()
    with pytest.raises(UserError, match="not of the samples in .*run reward again"):
        stage.run(pairs.job(filter="none").model_copy(update={"rewards": folder}))


def test_without_rewards_the_selection_has_no_such_columns(generation):
    stage.run(generation.job(filter="none"))
    assert {"reward", "advantage"}.isdisjoint(generation.result().read_all().column_names)
