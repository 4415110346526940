"""``prompts`` + ``rollouts`` -> ``rewards``: every answer is judged once, whatever happens meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import numpy as np
import pyarrow as pa

from npd_ascend.data.answers import Decoder, answered_shard
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.progress import Meter
from npd_ascend.reward.job import RewardJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.journal import Journal
from npd_ascend.tasks.judge import Judge
from npd_ascend.tasks.registry import Attempt


def run(job: RewardJob) -> None:
    """Writes the ``rewards`` dataset: same shards, rows and order as the rollouts.

    Equal answers to one prompt are judged once. What is judged is in the journal of its shard before the next is asked
    for, so a killed or refused stage goes on there. The manifest's extra holds ``parts`` (their names), ``weights``,
    ``means`` (of each part) and ``mean`` (of the values).

    Raises:
        UserError: a reward that is unknown, lacks what it needs, raises, or gives no finite number.
        CorruptShard: a checksum differs.
    """
    out = Dataset(job.out, "rewards", job.fingerprint)
    if out.complete:
        return
    prompts, rollouts = Dataset.open(job.prompts, "prompts"), Dataset.open(job.rollouts, "rollouts")
    if not rollouts.rows:
        raise UserError(f"{job.rollouts}: no samples there; check data.prompts and data.max_prompt_tokens")
    judge, decode = Judge(job.parts), Decoder(load_tokenizer(job.tokenizer, job.trust_remote_code), job.eos_token_ids)
    missing = out.missing(rollouts.shards)
    done = rollouts.rows - sum(rollouts.manifest["shards"][shard]["rows"] for shard in missing)
    workers = job.workers or os.cpu_count() or 1
    with Meter("reward", rollouts.rows, "answers", done) as meter, ThreadPoolExecutor(workers) as threads:
        for shard in missing:
            _judge_shard(shard, prompts, rollouts, out, decode, judge, threads, meter)
    table = pa.concat_tables(out.read(shard, ["value", "parts"]) for shard in range(rollouts.shards))
    parts = np.array(table["parts"].to_pylist(), np.float64).reshape(len(table), len(judge.names))
    out.finish(
        rollouts.shards,
        parts=list(judge.names),
        weights=list(judge.weights),
        means=[float(m) for m in parts.mean(0)],
        mean=float(table["value"].to_numpy().mean()),
    )


def _judge_shard(
    shard: int,
    prompts: Dataset,
    rollouts: Dataset,
    out: Dataset,
    decode: Decoder,
    judge: Judge,
    threads: ThreadPoolExecutor,
    meter: Meter,
) -> None:
    rows = list(answered_shard(prompts, rollouts, shard))
    journal = Journal(out.folder / f"shard-{shard:05d}.{out.fingerprint}.journal")
    found: dict[int, list[float]] = {}
    for record in journal.replay():
        found |= dict.fromkeys(record["rows"], record["parts"])
    meter.done += len(found)
    meter.skipped += len(found)
    same: dict[Attempt, list[int]] = {}
    for i, row in enumerate(rows):
        if i not in found:
            same.setdefault(_attempt(row, decode), []).append(i)
    for parts, places in _judged(same, judge, threads):
        journal.append({"rows": places, "parts": parts})
        found |= dict.fromkeys(places, parts)
        meter.advance(len(places), tokens=sum(len(rows[i]["response_ids"]) for i in places))
    parts_of = [found[i] for i in range(len(rows))]
    out.write_table(
        shard,
        pa.table(
            {
                "sample_id": [row["sample_id"] for row in rows],
                "value": [judge.value(parts) for parts in parts_of],
                "parts": parts_of,
            }
        ),
    )
    journal.remove()


def _attempt(row: Mapping[str, object], decode: Decoder) -> Attempt:
    ids = row["response_ids"]
    assert isinstance(ids, list)
    answer = row["answer"]
    return Attempt(
        str(row["text"]),
        decode(ids),
        None if answer is None else str(answer),
        len(ids),
        row["finish_reason"] == "length",
    )


def _judged(
    same: Mapping[Attempt, list[int]], judge: Judge, threads: ThreadPoolExecutor
) -> Iterator[tuple[list[float], list[int]]]:
    """Parts of each attempt with its places, as they are found; what is under way when one fails still comes."""
    futures = {threads.submit(judge, attempt): places for attempt, places in same.items()}
    failed: Exception | None = None
    for future in _all(futures):
        try:
            yield future.result(), futures[future]
        except Exception as e:
            failed = failed or e
            for other in futures:
                other.cancel()
    if failed:
        raise failed


def _all(futures: Iterable[Future[list[float]]]) -> Iterator[Future[list[float]]]:
    return (f for f in as_completed(futures) if not f.cancelled())
