"""Layouts, clock, results and plan of a study: no engine."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from npd_ascend.config.study import LiveConfig, arms_of, load_study
from npd_ascend.errors import UserError
from npd_ascend.store.metrics import read_metrics
from npd_ascend.study import conduct as conductor
from npd_ascend.study.batches import Layout
from npd_ascend.study.clock import Clock
from npd_ascend.study.conduct import chosen, conduct, describe, kin, next_for, share, sources
from npd_ascend.study.method import Sample, changes
from npd_ascend.study.results import TOTAL, Recorder, Results, content, identity


def samples(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Sample(
            i,
            rng.integers(1, 9, rng.integers(3, 6)).astype(np.int32),
            rng.integers(1, 9, rng.integers(1, 12)).astype(np.int32),
            "student",
        )
        for i in range(n)
    ]


@pytest.mark.parametrize(
    "live", [LiveConfig(), LiveConfig(buckets=[8, 12]), LiveConfig(rows=4), LiveConfig(layout="packed", rows=2)]
)
def test_every_token_is_predicted_once(live):
    some = samples(11)
    layout = Layout.of(live, 11, 32, 2, [s.prompt for s in some], 18, pad=0)
    seen = []
    shapes = set()
    for part in layout.parts(some):
        flat = part.rows.input_ids.reshape(-1)
        shapes.add((part.rows.input_ids.shape, part.positions.shape))
        at = 0
        for i in part.samples:
            n = len(some[i].response)
            here = part.positions[at : at + n]
            np.testing.assert_array_equal(flat[here + 1], some[i].response)
            assert flat[here[0]] == some[i].prompt[-1]
            at += n
            seen.append(int(i))
        assert at == part.tokens and not part.positions[at:].any()
    assert sorted(seen) == list(range(11)) and len(shapes) == 1
    assert layout.empty(layout.lengths[0]).rows.input_ids.shape[0] == layout.rows


def test_buckets():
    short = [Sample(0, np.ones(3, np.int32), np.ones(4, np.int32), "student")]
    layout = Layout.of(LiveConfig(buckets=[8, 40]), 1, 32, 2, [short[0].prompt], 18, pad=0)
    assert layout.lengths == (8, 24) and next(layout.parts(short)).rows.input_ids.shape == (1, 8)
    with pytest.raises(UserError, match="row_length"):
        Layout.of(LiveConfig(layout="packed"), 1, 16, 2, [short[0].prompt], 18, pad=0)


def test_clock_books_the_innermost(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("npd_ascend.study.clock.time.monotonic", lambda: now[0])

    def pass_(seconds):
        now[0] += seconds

    clock = Clock()
    pass_(0.25)
    with clock.on("train"):
        pass_(2.0)
        with clock.on("evaluation"):
            pass_(5.0)
        pass_(1.0)
    clock.charge("rollout", 3.0)
    with clock.on("rollout"):
        clock.move("rollout", "reload", 1.0)
    assert dict(clock.totals) == {"other": 0.25, "train": 3.0, "evaluation": 5.0, "rollout": 2.0, "reload": 1.0}
    assert clock.seconds == 6.25


def study(tmp_path, **groups):
    base = {
        "run": {"dir": "x"},
        "models": {"teacher": "t", "student": "s"},
        "data": {"prompts": ["p.jsonl"], "response_field": "answer", "answer_field": "answer"},
        "evaluate": {"prompts": ["e.jsonl"]},
        "select": {"upper_quantile": 0.97, "lower": None},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    tree = {
        "study": {"dir": str(tmp_path / "out"), "seeds": [0, 1]},
        "tasks": {"maze": {"config": str(tmp_path / "base.yaml"), "set": {"train.epochs": 4}}},
        "groups": groups
        or {
            "a": {
                "tasks": ["maze"],
                "set": {"train.lr": 2e-3},
                "arms": {
                    "npd": {},
                    "sft": {"method": "sft"},
                    "gkd": {"method": "gkd", "live": {"student_fraction": 0.7}},
                },
            }
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "study.yaml"


def test_arms(tmp_path):
    arms = list(arms_of(load_study(study(tmp_path)), changes))
    assert [a.key for a in arms[:4]] == ["maze/a/npd/0", "maze/a/sft/0", "maze/a/gkd/0", "maze/a/npd/1"]
    npd, sft, gkd = arms[:3]
    assert npd.config.train.epochs == 4 and npd.config.train.lr == 2e-3 and npd.config.select.upper_quantile == 0.97
    assert sft.config.rollout.source == "reference" and sft.config.select.filter == "none"
    assert gkd.live.student_fraction == 0.7 and gkd.config.train.loss.divergence == "jsd:0.5"
    assert len({identity(a) for a in arms}) == len(arms)
    assert len({a.config.run.dir for a in arms}) == len(arms)


@pytest.mark.parametrize(
    "group,text",
    [
        ({"tasks": ["sort"], "arms": {"npd": {}}}, "there are: maze"),
        (
            {"tasks": ["maze"], "arms": {"npd": {"method": "nqd"}}},
            "a/npd: method: there is no method 'nqd'; did you mean npd?",
        ),
        ({"tasks": ["maze"], "arms": {"npd": {"set": {"train.lrr": 1}}}}, "did you mean train.lr"),
        ({"tasks": ["maze"], "arms": {"gkd": {"method": "gkd", "live": {"fraction": 1}}}}, "student_fraction"),
        ({"tasks": ["maze"], "arms": {"a/b": {}}}, "becomes a path"),
        ({"tasks": ["maze"], "arm": {"npd": {}}}, "unknown key groups.a.arm"),
    ],
)
def test_mistakes_are_one_line(tmp_path, group, text):
    with pytest.raises(UserError) as e:
        list(arms_of(load_study(study(tmp_path, a=group)), changes))
    assert text in str(e.value) and "\n" not in str(e.value)


def test_results_and_what_is_left(tmp_path):
    plan = load_study(study(tmp_path))
    results, arms = Results(plan.study.dir), chosen(plan, [])
    assert "6 arms, 6 to run" in describe(plan) and "2 arms" in describe(plan, ["a/sft"])
    assert [a.name for a in chosen(plan, ["a/gkd", "a/npd"])] == ["gkd", "gkd", "npd", "npd"]
    with pytest.raises(UserError, match="groups: a"):
        chosen(plan, ["b"])
    for arm in arms[:2]:
        record = Recorder(results.own(arm), arm)
        record.log("eval", 3, 1.5, 2.0, 600, accuracy=0.5)
        if arm is arms[0]:
            record.log("time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(arm), wall=11.0)
            results.take(arm)
    assert results.finished() == {arms[0].key: identity(arms[0])} and results.seconds() == {arms[0].key: 11.0}
    assert "6 arms, 5 to run" in describe(plan)
    results.drop({arms[0].key: "other settings"})
    assert not results.finished() and "6 arms, 6 to run" in describe(plan)


def test_one_worker_takes_the_seeds_of_an_arm(tmp_path):
    waiting = list(arms_of(load_study(study(tmp_path)), changes))
    own, other, taken = set(), set(), []
    for mine in (own, other) * 3:
        arm = waiting.pop(next_for(mine, own | other, waiting))
        mine.add(kin(arm))
        taken.append(arm.key.removeprefix("maze/a/"))
    assert taken[::2] == ["npd/0", "npd/1", "gkd/0"] and taken[1::2] == ["sft/0", "sft/1", "gkd/1"]


def test_settings_of_the_synchronous_loop_count_where_there_is_one(tmp_path):
    def made(prompts):
        arms = {"npd": {}, "gkd": {"method": "gkd"}}
        group = {"tasks": ["maze"], "live": {"prompts_per_step": prompts}, "arms": arms}
        return {a.name: identity(a) for a in chosen(load_study(study(tmp_path, a=group)), [])}

    few, many = made(4), made(8)
    assert few["npd"] == many["npd"] and few["gkd"] != many["gkd"]


def test_arms_that_do_the_same_are_one_run(tmp_path):
    plan = load_study(
        study(
            tmp_path,
            a={"tasks": ["maze"], "exposure": True, "arms": {"npd": {}}},
            b={"tasks": ["maze"], "arms": {"f1": {}, "f0": {"set": {"sync.refreshes": 0}}}},
        )
    )
    results, arms = Results(plan.study.dir), chosen(plan, [])
    npd, f1, f0 = (next(a for a in arms if a.name == name) for name in ("npd", "f1", "f0"))
    assert content(npd) == content(f1) != content(f0) and identity(npd) != identity(f1)
    assert "the same run as maze/a/npd/0" in describe(plan) and "4 runs" in describe(plan)
    record = Recorder(results.own(npd), npd)
    record.log("eval", 3, 1.5, 2.0, 600, accuracy=0.5)
    record.log("exposure", 3, 1.5, 2.0, 600, kl_ts=0.5)
    record.log("time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(npd), wall=11.0)
    results.take(npd)
    assert share(results, [npd], arms) == [f1] and share(results, [npd], arms) == []
    assert results.finished() == {npd.key: identity(npd), f1.key: identity(f1)}
    assert results.seconds() == {npd.key: 11.0}
    kinds = [(r["arm"], r["kind"]) for r in read_metrics(results.path)]
    assert kinds == [("npd", "eval"), ("npd", "exposure"), ("npd", "time"), ("f1", "eval"), ("f1", "time")]


def test_a_timed_run_serves_those_that_are_not(tmp_path):
    plan = load_study(
        study(
            tmp_path,
            a={"tasks": ["maze"], "arms": {"npd": {}, "sft": {"method": "sft"}}},
            b={"tasks": ["maze"], "timed": True, "arms": {"quick": {}, "again": {}}},
        )
    )
    results, arms = Results(plan.study.dir), chosen(plan, [])
    npd, sft, quick, again = (next(a for a in arms if a.name == name) for name in ("npd", "sft", "quick", "again"))
    serves = sources([npd, sft, quick, again])
    assert [serves[a.key] for a in (npd, sft, quick, again)] == [quick, sft, quick, again]
    assert "the same run as maze/b/quick/0" in describe(plan)
    Recorder(results.own(quick), quick).log(
        "time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(quick), wall=11.0, timed=True
    )
    results.take(quick)
    assert share(results, [quick], [npd, sft, again]) == [npd]
    assert [(r["arm"], r["timed"]) for r in read_metrics(results.path)] == [("quick", True), ("npd", False)]


def test_a_run_with_more_evaluations_serves_those_with_fewer(tmp_path):
    plan = load_study(
        study(
            tmp_path,
            a={"tasks": ["maze"], "evaluations": 1, "arms": {"once": {}}},
            b={"tasks": ["maze"], "evaluations": 3, "arms": {"thrice": {}}},
            c={"tasks": ["maze"], "evaluations": 2, "arms": {"twice": {}}},
        )
    )
    arms = {a.name: a for a in chosen(plan, []) if a.seed == 0}
    serves = {name: sources(list(arms.values()))[arms[name].key].name for name in arms}
    assert serves == {"once": "thrice", "thrice": "thrice", "twice": "twice"}  # halves are not among thirds


CHAIN = {
    "c": {"tasks": ["maze"], "arms": {"taught": {"teacher": "maze/b/grown"}}},
    "b": {"tasks": ["maze"], "arms": {"grown": {"student": "maze/a/npd"}, "fresh": {}}},
    "a": {"tasks": ["maze"], "arms": {"npd": {}, "sft": {"method": "sft"}}},
}


def test_an_arm_depends_on_what_makes_its_models(tmp_path):
    def arms(**of_npd):
        tree = {**CHAIN, "a": {"tasks": ["maze"], "arms": {"npd": of_npd, "sft": {"method": "sft"}}}}
        return {a.name: a for a in chosen(load_study(study(tmp_path, **tree)), []) if a.seed == 1}

    first, second = arms(), arms(set={"train.lr": 5e-3})
    assert {n: a.level for n, a in first.items()} == {"taught": 2, "grown": 1, "fresh": 0, "npd": 0, "sft": 0}
    assert {n for n, a in first.items() if a.kept} == {"npd", "grown"}
    assert first["grown"].makers["student"].key == "maze/a/npd/1"
    assert {n for n in first if identity(first[n]) != identity(second[n])} == {"npd", "grown", "taught"}
    assert {n for n in first if content(first[n]) != content(second[n])} == {"npd", "grown", "taught"}
    assert content(first["grown"]) != content(first["fresh"])


def test_what_an_arm_needs_is_run_with_it_and_before(tmp_path):
    plan = load_study(study(tmp_path, **CHAIN))
    assert [a.key for a in chosen(plan, ["c"])][:3] == ["maze/a/npd/0", "maze/b/grown/0", "maze/c/taught/0"]
    assert len(chosen(plan, ["c"])) == 6 and "teacher from maze/b/grown/1" in describe(plan, ["c/taught"])


def test_an_arm_whose_student_is_kept_serves_those_whose_is_not(tmp_path):
    """And no run without a student serves an arm that others begin with."""
    tree = {**CHAIN, "d": {"tasks": ["maze"], "evaluations": 2, "arms": {"again": {}}}}
    arms = {a.name: a for a in chosen(load_study(study(tmp_path, **tree)), []) if a.seed == 0}
    serves = {name: same.split("/")[2] for name in arms for same in [sources(list(arms.values()))[arms[name].key].key]}
    assert serves == {
        "taught": "taught",
        "grown": "grown",
        "fresh": "npd",
        "npd": "npd",
        "sft": "sft",
        "again": "again",
    }


@pytest.mark.parametrize(
    "arm,text",
    [
        (
            {"student": "maze/a/nqd"},
            "groups.b.arms.grown.student is 'maze/a/nqd'; expected task/group/arm, one of: maze/c",
        ),
        ({"student": "npd"}, "expected task/group/arm"),
        ({"student": "maze/b/grown"}, "itself begins with what this arm makes"),
        ({"teacher": "maze/c/taught"}, "itself begins with what this arm makes"),
        ({"student": "maze/e/few"}, "groups.b.arms.grown.student: maze/e/few does not run with seed 1"),
    ],
)
def test_mistakes_in_a_chain_are_one_line(tmp_path, arm, text):
    tree = {
        **CHAIN,
        "b": {"tasks": ["maze"], "arms": {"grown": arm}},
        "e": {"tasks": ["maze"], "seeds": [0], "arms": {"few": {}}},
    }
    with pytest.raises(UserError) as e:
        load_study(study(tmp_path, **tree))
    assert text in str(e.value) and "\n" not in str(e.value)


def test_a_chain_runs_in_order_and_a_lost_student_is_made_again(tmp_path, monkeypatch):
    plan = load_study(study(tmp_path, **CHAIN))
    phases, broken = [], {"maze/a/npd/1"}
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text("{}")

    def phase(arms, workers, resolved, results, progress):
        phases.append(sorted(a.key.removeprefix("maze/") for a in arms))
        for arm in arms:
            if arm.key in broken:
                progress.failed(arm, "out of luck")
                continue
            assert all((results.student(m) / "config.json").read_text() == "{}" for m in arm.makers.values())
            if arm.kept:
                results.keep(arm, tmp_path / "made")
            Recorder(results.own(arm), arm).log(
                "time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(arm), wall=11.0
            )
            results.take(arm)
            progress.done(arm)
        return sum(a.key in broken for a in arms)

    monkeypatch.setattr(conductor, "_phase", phase)
    monkeypatch.setattr(conductor, "_report", lambda root, say: None)
    monkeypatch.setattr(conductor, "check_config", lambda config: None)
    monkeypatch.setattr(conductor, "check_inputs", lambda root, arms, begun: None)
    said = []
    # "fresh" is served by "npd"; with seed 1, where that fails, it runs itself.
    assert conduct(plan, say=said.append) == 3
    assert phases == [["a/npd/0", "a/npd/1", "a/sft/0", "a/sft/1"], ["b/grown/0"], ["c/taught/0"], ["b/fresh/1"]]
    assert [line.split("] ")[1] for line in said if "FAILED" in line] == [
        "maze/a/npd/1: FAILED: out of luck",
        "maze/b/grown/1: FAILED: maze/a/npd/1 has made no student",
        "maze/c/taught/1: FAILED: maze/b/grown/1 has made no student",
    ]
    broken.clear()
    phases.clear()
    results = Results(plan.study.dir)
    shutil.rmtree(results.student(next(a for a in chosen(plan, []) if a.key == "maze/b/grown/0")))
    assert conduct(plan, say=said.append) == 0
    assert phases == [["a/npd/1"], ["b/grown/0", "b/grown/1"], ["c/taught/1"]]
    rows = [r for r in read_metrics(results.path) if r["arm"] == "grown"]
    assert sorted(r["seed"] for r in rows) == [0, 1]


def test_the_others_wait_for_timed_runs(tmp_path, monkeypatch):
    """Or run after them when those fail."""
    plan = load_study(
        study(
            tmp_path,
            a={"tasks": ["maze"], "arms": {"npd": {}, "sft": {"method": "sft"}}},
            b={"tasks": ["maze"], "timed": True, "arms": {"quick": {}}},
        )
    )
    phases = []

    def phase(arms, workers, resolved, results, progress):
        phases.append((sorted({a.name for a in arms}), workers))
        for arm in arms:
            if arm.name != "quick" or arm.seed == 0:
                Recorder(results.own(arm), arm).log(
                    "time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(arm), wall=11.0
                )
                results.take(arm)
        return 0

    monkeypatch.setattr(conductor, "_phase", phase)
    monkeypatch.setattr(conductor, "_report", lambda root, say: None)
    monkeypatch.setattr(conductor, "check_config", lambda config: None)
    monkeypatch.setattr(conductor, "check_inputs", lambda root, arms, begun: None)
    conduct(plan, say=lambda line: None)
    assert phases == [(["sft"], 2), (["quick"], 1), (["npd"], 1)]
    assert len(Results(plan.study.dir).seconds()) == 4  # sft twice, quick and npd once each


WORKER = """#!{python}
import json, os, sys
sys.path.insert(0, {root!r})
from npd_ascend.config.study import arms_of, load_study
from npd_ascend.study.method import changes
from npd_ascend.study.results import TOTAL, Recorder, Results, identity
for line in sys.stdin:
    command = json.loads(line)
    if "exit" in command:
        break
    study = load_study(command["job"]["study"])
    arms, results = {{a.key: a for a in arms_of(study, changes)}}, Results(study.study.dir)
    arm = arms[command["job"]["arm"]]
    Recorder(results.own(arm), arm).log("time", 3, 4.0, 9.0, 600, stage=TOTAL, identity=identity(arm), wall=os.getpid())
    print(json.dumps({{"event": "done", "result": ""}}), flush=True)
"""


@pytest.mark.parametrize("share, workers, processes", [(0.7, 1, 1), (0.7, 2, 2), (0.0, 1, 6)])
def test_workers_share_the_arms_and_one_that_holds_too_much_starts_anew(
    tmp_path, monkeypatch, share, workers, processes
):
    """Workers without engines that note their process id; with no memory at all each arm has a process of its own."""
    python = tmp_path / "python"
    python.write_text(WORKER.format(python=sys.executable, root=str(Path(conductor.__file__).parents[2])))
    python.chmod(0o755)
    monkeypatch.setenv("NPD_MINDSPORE_PYTHON", str(python))
    monkeypatch.setattr(conductor, "_MEMORY_SHARE", share)
    monkeypatch.setattr(conductor, "_report", lambda root, say: None)
    monkeypatch.setattr(conductor, "check_config", lambda config: None)
    monkeypatch.setattr(conductor, "check_inputs", lambda root, arms, begun: None)
    plan = load_study(study(tmp_path))
    plan = plan.model_copy(update={"study": plan.study.model_copy(update={"workers": workers})})
    assert conduct(plan, say=lambda line: None) == 0
    ids = Results(plan.study.dir).seconds()
    assert len(ids) == 6 and len(set(ids.values())) == processes
