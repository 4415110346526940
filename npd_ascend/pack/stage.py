"""The pack stage: kept samples in, one plan of rows for each local epoch out."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from npd_ascend import progress
from npd_ascend.pack.job import PackJob
from npd_ascend.pack.lengths import fit, read_samples
from npd_ascend.pack.plan import as_table, epoch_plan
from npd_ascend.rows.balance import imbalance, slices_of
from npd_ascend.rows.bfd import best_fit_decreasing, lower_bound
from npd_ascend.store.dataset import Dataset


def run(job: PackJob) -> None:
    """Writes the ``packs`` dataset: shard e is the plan of local epoch e, rows in training order.

    Packs once; every epoch is another mixture of that packing (see ``plan.epoch_plan``). The manifest's extra holds
    ``rows`` (of one epoch), ``lower_bound_rows``, ``density``, ``samples``, ``tokens``, ``response_tokens``, what
    was cut or dropped (``lengths.Losses``), ``group``, ``slices``, and ``imbalance`` (see ``rows.balance``: share
    of attention time lost to the slowest slice, mean over epochs) with ``imbalance_worst_batch``.

    Raises:
        UserError: inputs do not belong together, a sample is too long and so refused, or nothing is left.
        CorruptShard: an input's checksum differs.
    """
    out = Dataset(job.out, "packs", job.fingerprint)
    if out.complete:
        return
    kept = read_samples(
        Dataset.open(job.prompts, "prompts"),
        Dataset.open(job.rollouts, "rollouts"),
        Dataset.open(job.selection, "selection"),
    )
    row_length = job.settings.row_length
    samples, losses = fit(kept, row_length, job.settings.too_long)
    if losses.dropped_samples or losses.truncated_samples:
        progress.message(
            f"pack: {losses.truncated_samples} samples cut by {losses.truncated_tokens} tokens and "
            f"{losses.dropped_samples} samples with {losses.dropped_tokens} tokens left out at row_length "
            f"{row_length}",
            level="warning",
        )
    lengths = samples.total
    bins = best_fit_decreasing(lengths, row_length)
    slices = slices_of(job.group)
    missing = set(out.missing(job.epochs))
    with progress.Meter("pack", total=job.epochs, unit="epochs", done=job.epochs - len(missing)) as meter:
        for epoch in sorted(missing):
            plan = epoch_plan(bins, lengths, job.group, job.first_epoch_seed, epoch)
            lost = imbalance(plan.sums(lengths**2), job.group, slices)
            out.write_table(epoch, as_table(plan, samples), epoch=epoch, **asdict(lost))
            meter.advance(1, tokens=int(lengths.sum()))
    metas = [(out.record(e) or {"meta": {}})["meta"] for e in range(job.epochs)]
    tokens = int(lengths.sum())
    out.finish(
        job.epochs,
        rows=len(bins),
        lower_bound_rows=lower_bound(lengths, row_length),
        row_length=row_length,
        density=tokens / (len(bins) * row_length),
        samples=len(lengths),
        tokens=tokens,
        response_tokens=int(samples.response.sum()),
        **asdict(losses),
        group=job.group,
        slices=slices,
        imbalance=float(np.mean([m["mean"] for m in metas])),
        imbalance_worst_batch=max(m["worst"] for m in metas),
    )
