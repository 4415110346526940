"""The select stage: rollouts and scores in, a decision for every sample out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from npd_ascend import progress
from npd_ascend.arrays import Array
from npd_ascend.config.stages import QUANTITIES
from npd_ascend.errors import UserError
from npd_ascend.select.advantages import Advantages, advantages
from npd_ascend.select.columns import read_scores
from npd_ascend.select.decide import Decisions, decide, summary, warning
from npd_ascend.select.job import SelectJob
from npd_ascend.select.metrics import ZONES
from npd_ascend.select.registry import FILTERS, Scores
from npd_ascend.store.arrays import strings, to_arrow
from npd_ascend.store.dataset import Dataset


def run(job: SelectJob) -> None:
    """Writes the ``selection`` dataset: same shards, rows and order as the rollouts; nothing is deleted.

    Bounds by quantile and the normalisation of weights are over the whole generation, so all decisions are made
    at once and only the shards that are missing are written.

    Raises:
        UserError: unknown filter, scores missing or of other rollouts, or nothing kept.
        CorruptShard: an input's checksum differs.
    """
    out = Dataset(job.out, "selection", job.fingerprint)
    if out.complete:
        return
    chosen = FILTERS.find(job.settings.filter)
    if lacking := sorted(chosen.needs - set(job.quantities)):
        raise UserError(
            f"select.filter {chosen.name} needs {', '.join(lacking)}; annotate first, or set select.filter: none"
        )
    rollouts = Dataset.open(job.rollouts, "rollouts")
    stored = {name: Dataset.open(job.quantities[name], "scores") for name in QUANTITIES if name in chosen.needs}
    ids, first, scores = read_scores(rollouts, stored, job.settings.ifd_form)
    if not len(ids):
        raise UserError(f"{job.rollouts}: no samples there; check data.prompts and data.max_prompt_tokens")
    worth = _advantages(job, rollouts, ids) if job.rewards else None
    decisions = decide(scores, chosen, job.settings, None if worth is None else worth.dropped)
    with progress.Meter("select", total=len(ids)) as meter:
        missing = out.missing(rollouts.shards)
        spans = [slice(int(first[shard]), int(first[shard + 1])) for shard in missing]
        meter.advance(len(ids) - sum(rows.stop - rows.start for rows in spans))
        names = strings(decisions.reasons), strings(ZONES)
        tables = (_table(ids, scores, decisions, worth, rows, *names) for rows in spans)
        for done in out.write_tables(zip(missing, tables, strict=True)):
            meter.advance(done)
    if advice := warning(chosen.name, decisions, job.settings):
        progress.message(advice, level="warning")
    if worth is not None and worth.summary["idle"]:
        progress.message(
            "select: the answers to each prompt are all worth the same, so this generation teaches nothing; other "
            "prompts or more rollout.samples help, or another start",
            level="warning",
        )
    groups = {} if worth is None else {"groups": worth.summary}
    out.finish(rollouts.shards, **summary(decisions, scores, job.settings), **groups)


def _advantages(job: SelectJob, rollouts: Dataset, ids: Array) -> Advantages:
    assert job.rewards is not None
    rewards = Dataset.open(job.rewards, "rewards").read_all(["sample_id", "value"])
    if not np.array_equal(rewards["sample_id"].to_numpy(), ids):
        raise UserError(f"{job.rewards}: not of the samples in {job.rollouts}; run reward again")
    group = rollouts.read_all(["prompt_index"])["prompt_index"].to_numpy()
    return advantages(group, rewards["value"].to_numpy(), job.advantage)


def _table(
    ids: Array,
    scores: Scores,
    decisions: Decisions,
    worth: Advantages | None,
    rows: slice,
    reasons: pa.Array,
    zones: pa.Array,
) -> pa.Table:
    columns = {
        "sample_id": ids[rows],
        "keep": decisions.keep[rows],
        "weight": decisions.weight[rows],
        "metric": decisions.metric[rows],
        "ifd_teacher": scores.ifd_teacher[rows],
        "ifd_student": scores.ifd_student[rows],
        "delta_ifd": scores.delta_ifd[rows],
    }
    if worth is not None:
        columns |= {"reward": worth.reward[rows], "advantage": worth.advantage[rows]}
    categories = {"reason": (decisions.reason[rows], reasons), "zone": (decisions.zone[rows], zones)}
    return pa.table(
        {name: to_arrow(values) for name, values in columns.items()}
        | {
            name: pa.DictionaryArray.from_arrays(to_arrow(codes), names, safe=False)
            for name, (codes, names) in categories.items()
        }
    )
