"""The report reads what the real stages write, not only what the fabricated run imitates."""

import json

import pytest

from npd_ascend.evaluate.job import EvaluateJob
from npd_ascend.pack.job import PackJob
from npd_ascend.report.collect import collect
from npd_ascend.select.job import SelectJob
from npd_ascend.select.registry import SCORES as ALL_SCORES


def test_selection_and_packs_of_the_real_stages(make_run):
    from npd_ascend.pack.stage import run as pack
    from npd_ascend.select.stage import run as select

    facts = make_run()
    g = facts.run.generation(1)
    select(
        SelectJob(
            out=g.selection,
            fingerprint="s",
            rollouts=g.rollouts,
            settings=facts.config.select,
            quantities={name: facts.run.data(name, 1) for name in ALL_SCORES},
        )
    )
    pack(
        PackJob(
            out=g.packs,
            fingerprint="k",
            prompts=facts.run.prompts,
            rollouts=g.rollouts,
            selection=g.selection,
            epochs=2,
            first_epoch_seed=1,
            group=8,
            settings=facts.config.pack,
        )
    )
    run = collect(facts.root)
    assert not run.problems
    mine, fabricated = run.generations[1], facts.generations[1]
    assert mine.selection.kept == fabricated.kept.sum() and mine.selection.lower == 0 and mine.selection.upper == 0.8
    assert mine.selection.zones == {z: int((fabricated.zone == z).sum()) for z in set(fabricated.zone)}
    assert mine.packing.samples == fabricated.kept.sum() and mine.packing.tokens == fabricated.pack_tokens
    assert mine.packing.least_rows <= mine.packing.rows <= fabricated.pack_rows
    assert mine.packing.density == pytest.approx(fabricated.pack_tokens / mine.packing.rows / 512)
    assert mine.packing.dropped == mine.packing.truncated == 0 and mine.packing.imbalance >= 0


def test_selection_without_scores(make_run):
    from npd_ascend.report.plots import delta, zones
    from npd_ascend.select.stage import run as select

    facts = make_run(generations=1)
    g = facts.run.generation(0)
    settings = facts.config.select.model_copy(update={"filter": "none"})
    select(SelectJob(out=g.selection, fingerprint="s", rollouts=g.rollouts, settings=settings))
    run = collect(facts.root)
    assert run.generations[0].selection.keep_rate == 1 and not run.generations[0].selection.filtered
    assert zones(run) is None and delta(run) is None and not run.problems


def test_evaluation_of_the_real_stage(make_run):
    from npd_ascend.evaluate.stage import run as evaluate

    facts = make_run(generations=1)
    out = facts.run.evaluations / "end.json"
    evaluate(
        EvaluateJob(
            out=out,
            fingerprint="e",
            prompts=facts.run.prompts,
            rollouts=facts.run.generation(0).rollouts,
            tokenizer=facts.config.models.tokenizer or facts.config.models.student,
            name="end",
            settings=facts.config.evaluate,
            eos_token_ids=[],
        )
    )
    run, raw = collect(facts.root), json.loads(out.read_text())
    end = run.evaluation("end")
    assert not run.problems and end.n == 400 and end.accuracy == raw["accuracy"] and end.progress == 2.0
    assert end.truncated == pytest.approx((facts.generations[0].finish == "length").mean())
    assert end.answers[0]["prompt"].startswith("From cell 0")
