"""Slices of the prompts: whole, without repetition, the same for the same seed."""

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.draw.job import DrawJob
from npd_ascend.draw.stage import drawn, run
from npd_ascend.store.dataset import Dataset


@pytest.mark.parametrize("prompts, count", [(10, 3), (12, 4), (7, 7), (5, 1)])
def test_every_pass_has_every_prompt_at_most_once(prompts, count):
    slices = prompts // count
    for number in range(3):
        seen = np.concatenate([drawn(prompts, count, number * slices + i, seed=4) for i in range(slices)])
        assert len(seen) == slices * count == len(set(seen.tolist())) and seen.min() >= 0 and seen.max() < prompts
    orders = [tuple(drawn(prompts, count, g, seed=4)) for g in range(2 * slices)]
    assert orders == [tuple(drawn(prompts, count, g, seed=4)) for g in range(2 * slices)]
    assert count == prompts == 7 or orders[:slices] != orders[slices:]
    assert prompts < 7 or orders != [tuple(drawn(prompts, count, g, seed=5)) for g in range(2 * slices)]


def test_a_slice_is_a_prompts_dataset(tmp_path):
    source = Dataset(tmp_path / "prompts", "prompts", "p")
    for shard in range(2):
        index = np.arange(shard * 5, shard * 5 + 5)
        null = pa.nulls(5, pa.list_(pa.int32()))
        source.write_table(shard, pa.table({
            "prompt_index": index, "prompt_id": index + 1000, "reference_ids": null, "label_ids": null,
            "prompt_ids": pa.array([[int(i)] * int(i + 1) for i in index], pa.list_(pa.int32())),
            "answer": pa.array([str(i) for i in index]), "text": pa.array([f"q{i}" for i in index])}))  # fmt: skip
    source.finish(2, longest_prompt=10, eos_token_ids=[2])
    job = DrawJob(out=tmp_path / "drawn", fingerprint="f", source=source.folder, generation=1, seed=3, count=5,
                  shard_size=2)  # fmt: skip
    run(job)
    out = Dataset.open(job.out, "prompts")
    table = out.read_all()
    chosen = drawn(10, 5, 1, 3)
    assert table["prompt_index"].to_pylist() == [0, 1, 2, 3, 4] and out.shards == 3
    assert table["prompt_id"].to_pylist() == (chosen + 1000).tolist()
    assert (
        table["answer"].to_pylist() == [str(i) for i in chosen] and table["tokens"].to_pylist() == (chosen + 1).tolist()
    )
    assert out.extra["longest_prompt"] == 10 and out.extra["prompts"] == 5
    before = {p.name: p.read_bytes() for p in job.out.iterdir()}
    run(job)
    assert {p.name: p.read_bytes() for p in job.out.iterdir()} == before
