"""The report of a run that learns from rewards."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.report.build import build, render
from npd_ascend.report.collect import collect
from npd_ascend.report.numbers import number
from npd_ascend.report.rewards import groups_of, pick
from npd_ascend.store.dataset import Dataset


def rewarded(made, parts=("number", "length")):
    """Makes of a run one with rewards: answers 4i to 4i + 3 are to one prompt."""
    run = made.run
    for g in run.generations():
        folder = run.generation(g)
        rollouts, selection = (Dataset.open(getattr(folder, k), k) for k in ("rollouts", "selection"))
        out = Dataset(folder.rewards, "rewards", f"w{g}")
        rng = np.random.default_rng(g)
        for s in range(rollouts.shards):
            rows, chosen = rollouts.read(s), selection.read(s)
            n = len(rows)
            index = rows["prompt_index"].to_numpy() // 4
            right = (rng.random(n) < 0.3 + 0.2 * g) | (index % 5 == 0)
            right[index % 5 == 1] = False
            value = right.astype(float)
            equal = index % 5 < 2
            at = rows.schema.get_field_index("prompt_index")
            Dataset(folder.rollouts, "rollouts", f"rollouts{g}").write_table(
                s, rows.set_column(at, "prompt_index", pa.array(index)), **rollouts.manifest["shards"][s]["meta"]
            )
            table = {"sample_id": rows["sample_id"], "value": value}
            columns = [[float(v), -0.5, 0.25][: len(parts)] for v in value]
            out.write_table(s, pa.table({**table, "parts": pa.array(columns, pa.list_(pa.float32()))}))
            reason = np.where(equal, "equal", "kept").tolist()
            chosen = chosen.drop(["reason", "keep"]).append_column("reason", pa.array(reason))
            chosen = chosen.append_column("keep", pa.array(~equal)).append_column("reward", pa.array(value))
            chosen = chosen.append_column("advantage", pa.array((value - 0.5).astype(np.float32)))
            Dataset(folder.selection, "selection", f"selection{g}").write_table(s, chosen)
        extras = {"rollouts": rollouts.extra, "selection": selection.extra}
        groups = {"groups": 100, "equal": 40, "equal_high": 25, "equal_low": 15, "mean": 0.4 + 0.1 * g, "std": 0.3}
        Dataset(folder.rollouts, "rollouts", f"rollouts{g}").finish(rollouts.shards, **extras["rollouts"])
        Dataset(folder.selection, "selection", f"selection{g}").finish(
            selection.shards, **{**extras["selection"], "on_delta": False, "filter": "none", "groups": groups}
        )
        means = [0.4 + 0.1 * g, -0.5, 0.25][: len(parts)]
        out.finish(rollouts.shards, parts=list(parts), weights=[1.0] * len(parts), means=means, mean=0.4 + 0.1 * g)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for i, row in enumerate(r for r in rows if r["kind"] == "train"):
        row |= {"policy_k3": 0.001 + 1e-4 * (i % 60), "policy_gap": 0.02, "policy_clip_share": 0.003 * (i % 60) / 60}
        row |= {"term_ppo_clip": -0.01, "age": i % 60}
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return run


@pytest.fixture
def run(make_run):
    return rewarded(make_run())


def test_it_is_read(run):
    found = collect(run.root)
    assert not found.problems
    last = found.rewarded[-1]
    assert last.index == 1 and last.rewards.mean == 0.5 and last.rewards.parts == {"number": 0.5, "length": -0.5}
    assert last.rewards.equal == 0.4 and last.rewards.entropy == pytest.approx(0.1, rel=1e-5)
    assert found.steps_of(1, "policy_k3")[0] == pytest.approx(0.001) and len(found.steps_of(1, "policy_k3")) == 60


def test_the_page_explains_it(run):
    text = render(collect(run.root))
    section = text[text.index('id="rewards"') : text.index('id="selection"')]
    assert section.count("<svg") >= 3 and "groups that teach nothing" in section
    assert f"{number(0.4)} → {number(0.5)}" in text and "Reward, first" in text
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row)[:4] for row in section.split("<tr>")]
    assert ["0", number(0.4), number(0.4), number(-0.5)] in cells and [
        "1",
        number(0.5),
        number(0.5),
        number(-0.5),
    ] in cells
    assert "all alike: left out" in section and 'data-head="advantage"' in section
    assert "<script>alert" not in text
    # Groups that are all alike are no fault of the filter.
    assert "are kept" not in text[text.index("<main>") : text.index('id="accuracy"')]


def test_one_reward_is_not_shown_twice(make_run):
    text = render(collect(rewarded(make_run(), ("maze",)).root))
    assert 'data-head="parts"' not in text and "maze" not in text[text.index('id="rewards"') :].split("</table>")[0]


def test_a_run_without_rewards_has_no_such_section(make_run):
    made = make_run()
    assert 'id="rewards"' not in build(made.root).read_text()


def test_groups_to_look_at():
    prompt = np.repeat([7, 8, 9, 10, 11], 2)
    reward = np.array([0, 0, 0, 1, 0.5, 1, 0, 3, 1, 1], float)
    assert pick(prompt, reward) == [10, 8, 9, 7]


def test_groups_are_best_first(run):
    index, groups = groups_of(run, collect(run.root).config, [])
    assert index == 1 and len(groups) == 4 and groups[-1].dropped and not groups[0].dropped
    for group in groups:
        assert len(group.members) == 4 and group.prompt.startswith("From cell")
        values = [m.reward for m in group.members]
        assert values == sorted(values, reverse=True)
