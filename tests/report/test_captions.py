"""What is said below figures is true of the configuration; the paper is named only where the run does the same."""

import json
import warnings

import pytest

from npd_ascend.config.load import dump_config, parse_config
from npd_ascend.report.build import build
from npd_ascend.report.captions import captions, loss_formula, rule
from npd_ascend.report.collect import collect
from npd_ascend.report.warnings import warnings_of
from npd_ascend.store.atomic import read_sealed, write_sealed


def changed(facts, select=None, bounds=None, drop=(), **sections):
    """The run under another configuration, its manifests as the filter would then write them."""
    tree = facts.config.model_dump(mode="json")
    for name, values in {"select": select or {}, **sections}.items():
        tree[name] |= values
    facts.run.write_config(dump_config(parse_config(tree, "test")))
    for g in range(2):
        path = facts.run.generation(g).selection / "manifest.json"
        manifest = read_sealed(path)
        write_sealed(path, {**manifest, "extra": {**manifest["extra"], **(bounds or {})}})
    rows = [json.loads(x) for x in facts.run.metrics.read_text().splitlines()]
    facts.run.metrics.write_text(
        "".join(json.dumps(r) + "\n" for r in rows if r["kind"] not in drop and r.get("stage") not in drop)
    )
    return collect(facts.root), build(facts.root).read_text()


def test_the_papers_rule_is_compared_with_the_paper(make_run):
    run, page = changed(make_run())
    assert "paper: 96.2 %" in page and "96.20 %" in page and "Table 19" in page and "Table 13" in page
    assert captions(run)["delta"].startswith("Dashed: what the filter keeps, 0 ≤ Δ-IFD ≤ 0.8.")
    assert "(1−λ)·CE + λ·KD" in captions(run)["loss"] and "paper (C.1)" in captions(run)["lag"]


def test_a_bound_by_quantile_is_not(make_run):
    run, page = changed(
        make_run(), {"lower": None, "upper": None, "upper_quantile": 0.97}, {"bounds": {"lower": None, "upper": 0.31}}
    )
    assert "96.2 %" not in page and "96.20 %" not in page
    text = captions(run)
    assert "Δ-IFD ≤ 0.31 (quantile 0.97)" in text["delta"] and "removes" not in text["delta"]
    assert "Δ-IFD ≤ 0.31 (quantile 0.97)" in page  # beside the keep rate
    assert "Table 13" in page  # zones are still the paper's


def test_another_delta_moves_the_zones_away_from_the_paper(make_run):
    run, page = changed(make_run(), {"upper": 0.4}, {"bounds": {"lower": 0.0, "upper": 0.4}, "zone_upper": 0.4})
    assert "0 ≤ Δ-IFD ≤ 0.4" in captions(run)["zones"] and "Table 13" not in page and "paper, early" not in page


def test_another_filter_is_named(make_run):
    run, page = changed(make_run(), {"filter": "fire"}, {"filter": "fire", "on_delta": False})
    assert "96.2 %" not in page and "filter fire" in page
    assert "the filter looks at another value" in captions(run)["delta"] and "removes" not in captions(run)["delta"]


def test_a_filter_without_bounds(make_run):
    run, _ = changed(make_run(), {"lower": None, "upper": None}, {"bounds": {"lower": None, "upper": None}})
    assert captions(run)["delta"].startswith("The filter has no bounds.")
    assert rule(run.generations[0].selection, run.config.select) == "filter delta_ifd without bounds"


@pytest.mark.parametrize(
    "select, said, unsaid",
    [
        ({}, "try select.lower: null, a bound by quantile", "asks for as much"),
        ({"lower": None}, "try a bound by quantile", "select.lower: null"),
        ({"upper": None, "upper_quantile": 0.5}, "select.upper_quantile: 0.5 asks for as much", "try"),
    ],
)
def test_advice_on_a_low_keep_rate_follows_the_rule(make_run, select, said, unsaid):
    run, _ = changed(make_run(keep=0.5), select)
    (line,) = [w for w in warnings_of(run) if "are kept" in w]
    assert said in line and unsaid not in line


def test_a_loss_of_terms_is_named_and_drawn_with_all_of_them(make_run):
    facts = make_run()
    rows = [json.loads(x) for x in facts.run.metrics.read_text().splitlines()]
    facts.run.metrics.write_text(
        "".join(json.dumps(r | ({"term_rank:2": 0.2} if r["kind"] == "train" else {})) + "\n" for r in rows)
    )
    run, page = changed(facts, train={"loss": {"terms": {"cross_entropy": 0.1, "jsd:0.3": 0.9}}})
    assert loss_formula(run.config) == "0.1 cross_entropy + 0.9 jsd:0.3"
    assert "0.1 cross_entropy + 0.9 jsd:0.3" in page and "λ" not in captions(run)["loss"]
    assert run.terms == ["term_rank:2"] and "rank:2" in page


@pytest.mark.parametrize(
    "loss, said",
    [
        ({"kd_weight": 0.0}, "Cross-entropy alone"),
        ({"kd_weight": 1.0}, "Divergence from the teacher alone"),
        ({"ce_labels": "none"}, "Divergence from the teacher alone"),
    ],
)
def test_one_sided_losses(make_run, loss, said):
    run, _ = changed(make_run(), train={"loss": loss})
    assert captions(run)["loss"].startswith(said)


def test_a_run_without_all_stages_is_not_compared_by_time(make_run):
    run, page = changed(make_run(), drop=("annotate_student",))
    assert "Table 19" not in page and "82 %" not in captions(run)["time"] and "Δ-IFD computation" not in page


def test_other_peoples_answers(make_run):
    run, page = changed(
        make_run(), rollout={"source": "reference"}, data={"response_field": "r"}, sync={"refreshes": 0}
    )
    text = captions(run)
    assert "bound of 0.1 nats says nothing" in text["lag"] and "near-policy: ≤" not in page
    assert "Answers of the data" in page and "max_new_tokens" not in text["lengths"]
    assert not any("lag reached" in w for w in warnings_of(run))


def test_the_kl_policy_has_its_own_bound(make_run):
    run, _ = changed(make_run(), sync={"policy": "kl", "epsilon": 0.05})
    assert "refresh policy's own" in captions(run)["lag"] and "paper" not in captions(run)["lag"]


@pytest.mark.parametrize("drop", [(), ("rollout", "annotate_teacher", "annotate_student", "select", "pack", "train")])
def test_drawing_warns_of_nothing(make_run, drop):
    """A timeline of stages that belong to no generation has no series to name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed(make_run(), drop=drop)


def test_every_cell_names_its_column(make_run):
    """So that a phone can show a row as a list."""
    import re

    page = build(make_run().root).read_text()
    tables = re.findall(r'<table class="data.*?</table>', page, re.S)
    assert len(tables) == 7
    for table in tables:
        heads = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)[1:]:
            assert re.findall(r'data-head="(.*?)"', row) == heads


def test_a_constant_rate_is_called_one(make_run):
    facts = make_run()
    assert "one cosine spans the whole run and does not restart" in captions(collect(facts.root))["optimiser"]
    run, _ = changed(facts, train={"min_lr": 1e-4, "warmup": 0.05})
    assert captions(run)["optimiser"].endswith("the learning rate is constant after its rise.")
