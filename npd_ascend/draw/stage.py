"""A generation's slice of the prompts: none comes again before the others have come."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from npd_ascend.arrays import Array
from npd_ascend.draw.job import DrawJob
from npd_ascend.progress import Meter
from npd_ascend.store.dataset import Dataset


def run(job: DrawJob) -> None:
    """Writes a ``prompts`` dataset of ``job.count`` rows, numbered anew; ``prompt_id`` and manifest stay the same.

    Raises:
        CorruptShard: a checksum of the prompts differs.
    """
    out = Dataset(job.out, "prompts", job.fingerprint)
    if out.complete:
        return
    source = Dataset.open(job.source, "prompts")
    rows = source.read_all().take(pa.array(drawn(source.rows, job.count, job.generation, job.seed)))
    index = rows.schema.get_field_index("prompt_index")
    rows = rows.set_column(index, "prompt_index", pa.array(np.arange(job.count, dtype=np.int64)))
    shards = -(-job.count // job.shard_size)
    with Meter("draw", job.count, "prompts") as meter:
        for shard in range(shards):
            part = rows.slice(shard * job.shard_size, job.shard_size)
            out.write_table(shard, part)
            meter.advance(len(part))
    out.finish(shards, **{**source.extra, "prompts": job.count})


def drawn(prompts: int, count: int, generation: int, seed: int) -> Array:
    """[count] int64, numbers of the prompts of a generation.

    The prompts are shuffled and cut into as many whole slices as there are; when these are used up, shuffled anew. What
    is left over at the end of a pass waits for the next, so that no slice has a prompt twice.

    Args:
        prompts: how many there are.
        count: of each generation.
        generation: which one.
        seed: of the run.
    """
    number, place = divmod(generation, prompts // count)
    order = np.random.default_rng([seed, number]).permutation(prompts)
    return order[place * count : (place + 1) * count].astype(np.int64)
