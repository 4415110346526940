"""Verdicts that are known beforehand, and pages that hold together."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.store.metrics import MetricsWriter
from npd_ascend.study.report import build
from npd_ascend.study.report.compare import difference, gain, judge, race, spikes
from npd_ascend.study.report.paper import Claim
from npd_ascend.study.report.readings import Readings, hits
from npd_ascend.study.report.sections import absent, headline, sections
from npd_ascend.study.statistics import paired


@pytest.fixture(scope="module")
def readings(study):
    return Readings.read(study)


def test_rows_are_found(readings):
    assert readings.tasks() == ["maze", "text"] and readings.groups() == ["baselines", "speed", "sync"]
    assert readings.arms("maze", "sync") == ["npd_f0", "npd_f1"]
    series = readings.series("maze", "baselines", "npd", "eval")
    assert sorted(series) == [0, 1, 2] and series[0].column("step").tolist() == [0, 60, 120, 180]


def test_a_resumed_arm_counts_once():
    row = {"task": "t", "group": "g", "arm": "a", "seed": 0, "kind": "eval", "step": 5}
    found = Readings([{**row, "accuracy": 0.1}, {"kind": "eval"}, {**row, "accuracy": 0.2}])
    assert found.series("t", "g", "a", "eval")[0].column("accuracy").tolist() == [0.2]


def test_hits_as_list_or_bits():
    assert hits({"hits": "0110"}).tolist() == hits({"hits": [0, 1, 1, 0]}).tolist() == [0, 1, 1, 0]
    assert hits({}) is None and hits({"hits": ""}) is None


@pytest.mark.parametrize(
    "claim, outcome",
    [
        (Claim("npd", "sft", ""), "shown"),
        (Claim("sft", "npd", ""), "against"),
        (Claim("npd", "gkd", ""), "open"),
        (Claim("npd", "sft", "", "kl_ts"), "shown"),
        (Claim("sft", "npd", "", "exaccerr"), "against"),
        (Claim("npd", "gkd", "", "seconds"), "shown"),
        (Claim("gkd", "npd", "", "seconds"), "against"),
        (Claim("npd", "absent", ""), "missing"),
    ],
)
def test_verdicts(readings, claim, outcome):
    assert judge(readings, "maze", "baselines", claim).outcome == outcome


def test_differences_use_seeds_and_prompts_in_pairs(readings):
    rows = [readings.last("maze", "baselines", arm, "eval") for arm in ("npd", "sft")]
    expected = paired(
        *([r[s]["accuracy"] for s in (0, 1, 2)] for r in rows), *([hits(r[s]) for s in (0, 1, 2)] for r in rows)
    )
    assert difference(readings, "maze", "baselines", "npd", "sft", "accuracy") == expected


def test_one_seed_alone_gives_no_verdict(make_study, tmp_path):
    make_study(tmp_path, seeds=(4,))
    found = Readings.read(tmp_path)
    for measure in ("kl_ts", "accuracy", "seconds"):
        assert judge(found, "maze", "baselines", Claim("npd", "sft", "", measure)).outcome == "few"


def test_race_to_the_same_accuracy(readings):
    found = race(readings, "maze", "speed", "gkd", "npd")
    assert 0.6 < found.target < 0.8 and found.own == pytest.approx(240, rel=0.2)
    if found.factor:
        assert found.factor.mean > 5
    never = race(readings, "maze", "speed", "npd", "sft")
    assert never.arrived == (0, 3) and never.factor is None and never.reference is None


def test_spikes():
    loss = np.full(50, 1.0)
    assert spikes(loss) == 0
    loss[30] = 1.6
    assert spikes(loss) == 1


def test_accuracy_claims_are_left_out_where_nobody_is_right(readings):
    baselines = next(s for s in sections(readings) if s.id == "baselines")
    assert {v.claim.measure for v in baselines.verdicts if v.task == "text"} == {"kl_ts", "exaccerr"}
    assert any("accuracy says nothing" in r for r in baselines.remarks)
    assert headline([baselines])["shown"] > 3


def test_pages(study, tmp_path):
    page = build(study, tmp_path / "report")
    html, md = page.read_text(), (page.parent / "summary.md").read_text()
    assert html.count("<svg") >= 10 and "a remark &lt;b&gt;" in html and "<script" not in html
    assert not re.search(r"(src|href)=\"(?!#)", html)
    for name in re.findall(r"\]\(([^)]+)\)", md):
        ET.fromstring((page.parent / name).read_text())
    assert "NaN" not in md and "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", md)
    for line in md.splitlines():
        if line.startswith("|"):
            width = line.count("|")
        if line.startswith("|---"):
            head = width
        if line.startswith("| "):
            assert width > 2
    assert head


def test_distance_from_the_start_beside_that_to_the_teacher(readings):
    """The rows lie on a line; on those of arms without the measure nothing is drawn."""
    (section,) = [s for s in sections(readings) if s.id == "sync"]
    drawn = {p.name: str(p.svg) for p in section.pictures}
    assert "R² 1.00" in drawn["sync-maze-drift"] and "npd_f1" in drawn["sync-maze-drift"]
    without = Readings([{k: v for k, v in r.items() if k != "drift"} for r in readings.rows])
    (section,) = [s for s in sections(without) if s.id == "sync"]
    assert not any(p.name.endswith("drift") for p in section.pictures)


def test_an_arm_alone_is_shown_and_compared_with_nothing(readings):
    alone = Readings([r for r in readings.rows if (r["group"], r["arm"]) == ("sync", "npd_f1")])
    (section,) = sections(alone)
    assert [row[0] for table in section.tables for row in table.rows] == ["npd_f1"] * 2
    head = section.tables[0].head
    assert "accuracy, %" in head and "KL(S‖start)" in head and not any("against" in column for column in head)


def test_peers_are_shown_beside(make_study, tmp_path):
    make_study(tmp_path, seeds=(0,))
    row = (
        '{"trainer": "gkd", "lmbda": 1.0, "beta": 0.0, "temperature": 0.05, "seed": %d, "prompts": 2400,'
        ' "seconds": %f, "seconds_per_prompt": 0.02, "accuracy_before": 0.3, "accuracy": 0.5, "trl": "1",'
        ' "torch": "2", "transformers": "4"}'
    )
    (tmp_path / "peers.jsonl").write_text("\n".join([row % (0, 40.0), "torn {", row % (1, 44.0)]))
    text = (build(tmp_path).parent / "summary.md").read_text()
    assert "TRL gkd | 1 | 0 | 0.05 | 2 | 2,400 | 42.0 ± 25.4" in text


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match="results.jsonl"):
        build(tmp_path)


def test_arms_stand_in_the_study_s_order(tmp_path):
    rows = [{"kind": "eval", "task": "t", "group": "g", "arm": a, "seed": 0, "step": 1} for a in ("x", "b", "a")]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert Readings.read(tmp_path).arms("t", "g") == ["x", "b", "a"]
    (tmp_path / "study.yaml").write_text("groups: {g: {arms: {a: {}, b: {}}}}")
    assert Readings.read(tmp_path).arms("t", "g") == ["a", "b", "x"]


def test_what_was_not_run_is_said(tmp_path):
    rows = [
        {"kind": "eval", "task": "t", "group": "g", "arm": a, "seed": s, "step": 1}
        for a, s in (("a", 0), ("a", 1), ("b", 0))
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert absent(tmp_path, Readings.read(tmp_path)) is None
    (tmp_path / "study.yaml").write_text("groups: {g: {arms: {a: {}, b: {}, c: {}}}, h: {arms: {d: {}}}}")
    section = absent(tmp_path, Readings.read(tmp_path))
    assert section.tables[0].rows == [["g", "c", "b (1)"], ["h", "d", "–"]]


def test_divergences_are_compared_over_prompts_too(tmp_path):
    """One seed has no interval of its own; values of each prompt give one, those without do not."""
    rng = np.random.default_rng(0)
    ease = rng.normal(size=100)  # a prompt is easy or hard for both arms
    writer = MetricsWriter(tmp_path / "results.jsonl")
    for arm, level in (("sft", 1.5), ("npd", 1.0)):
        values = level + ease + 0.1 * rng.normal(size=100)
        writer.log(
            "exposure",
            task="t",
            group="baselines",
            arm=arm,
            seed=0,
            step=1,
            kl_ts=float(values.mean()),
            kl_st=1.0,
            by_answer={"kl_ts": values.tolist()},
        )
    readings = Readings.read(tmp_path)
    gap = difference(readings, "t", "baselines", "npd", "sft", "kl_ts")
    assert gap.low < -0.5 < gap.high and gap.half < 0.05  # paired; unpaired it would be 0.28
    assert not difference(readings, "t", "baselines", "npd", "sft", "kl_st").known


def test_notes_and_machine_are_those_of_the_study(make_study, tmp_path):
    make_study(tmp_path, seeds=(0,))
    before = build(tmp_path).read_text()
    assert "2 CPU cores" not in before and "ran one at a time" not in before
    (tmp_path / "machine.txt").write_text("riscv, 3 cores, no NPU")
    (tmp_path / "study.yaml").write_text(
        "study: {seeds: [0]}\ntasks: {maze: {}}\ngroups: {speed: {arms: {npd: {}}, note: Timed alone.}}\n"
    )
    after = build(tmp_path).read_text()
    assert "riscv, 3 cores, no NPU" in after and "Timed alone." in after


def test_zones_stand_beside_the_papers_where_they_end_at_its_delta(make_study, tmp_path):
    make_study(tmp_path, seeds=(0,))
    assert "paper, early" in build(tmp_path).read_text()
    rows = [json.loads(x) for x in (tmp_path / "results.jsonl").read_text().splitlines()]
    (tmp_path / "results.jsonl").write_text(
        "".join(json.dumps(r | ({"zone_upper": 0.4} if r["kind"] == "zones" else {})) + "\n" for r in rows)
    )
    assert "paper, early" not in build(tmp_path).read_text()


def test_where_arms_start_from_different_students_it_is_said(make_study, tmp_path):
    make_study(tmp_path)
    rows = [json.loads(x) for x in (tmp_path / "results.jsonl").read_text().splitlines()]
    text = (build(tmp_path).parent / "summary.md").read_text()
    starts = {
        r["accuracy"]
        for r in rows
        if r["kind"] == "eval" and r["task"] == "maze" and r["group"] == "sync" and r["step"] == 0
    }
    assert f"They start at {100 * min(starts):.1f} to {100 * max(starts):.1f} % of 200" in text
    assert "; 60 optimiser steps." in text


def test_gains_of_arms_with_starts_of_their_own(tmp_path):
    """A gain counts seeds and prompts in pairs, end against start; the report shows both beside the paper's."""
    rng = np.random.default_rng(0)
    writer = MetricsWriter(tmp_path / "results.jsonl")
    levels = {"from_sft": (0.3, 0.4), "from_npd": (0.4, 0.8)}
    for arm, ends in levels.items():
        for seed in (0, 1, 2):
            draws = rng.random(400)
            where = {"task": "reward", "group": "grpo", "arm": arm, "seed": seed}
            for step, level in zip((0, 50), ends, strict=True):
                right = draws < level
                writer.log(
                    "eval",
                    **where,
                    step=step,
                    n=400,
                    accuracy=float(right.mean()),
                    hits="".join("01"[int(r)] for r in right),
                )
            for generation in range(7):
                writer.log("reward", **where, step=0, generation=generation, mean=0.3 + generation / 20)
    readings = Readings.read(tmp_path)
    rows = [s.rows for s in readings.series("reward", "grpo", "from_npd", "eval").values()]
    want = paired(*([r[i]["accuracy"] for r in rows] for i in (-1, 0)), *([hits(r[i]) for r in rows] for i in (-1, 0)))
    assert gain(readings, "reward", "grpo", "from_npd") == want and 0.3 < want.low < 0.4 < want.high < 0.5
    assert judge(readings, "reward", "grpo", Claim("from_npd", "from_sft", "", "gain")).outcome == "shown"
    text = (build(tmp_path).parent / "summary.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| from_npd")]
    assert "| 64.37 → 68.73 | 3 |" in row and f"| +{100 * want.mean:.1f} ± {100 * want.half:.1f} |" in row
    assert "| 0.30 … 0.60 |" in row and "gain: from_npd > from_sft" in text
