"""Answers before and after a run: what is read, the paired interval, the table."""

from __future__ import annotations

import numpy as np
import own_answers as tool
import pyarrow as pa
import pytest

from npd_ascend.errors import UserError
from npd_ascend.exposure.divergence import Tokens
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.schemas import PROMPTS, ROLLOUTS

pytest.importorskip("mindspore")
pytestmark = pytest.mark.mindspore


def tokens(*kl):
    kl = np.array(kl, np.float32)
    return Tokens(kl / 2, kl, -np.ones_like(kl), -np.full_like(kl, 2))


def test_difference_is_weighted_by_tokens():
    before, after = [tokens(1, 1), tokens(4)], [tokens(1), tokens(0, 0, 0)]
    mean, low, high = tool.difference(before, after, "kl_ts")
    assert mean == pytest.approx(1 / 4 - 6 / 3)
    # Drawn twice, the first prompt changes by 0, the second by -4; both once is the mean.
    assert (low, high) == pytest.approx((-4, 0))
    assert tool.difference(before, before, "kl_st") == (0, 0, 0)


def test_table():
    found = {"start": [tokens(1, 2, 3), tokens(2)], "end": [tokens(1, 1), tokens(1)]}
    answers = {
        name: tool.Answers([], [np.zeros(len(t.kl_ts)) for t in part], np.array([True, False]), np.zeros(2))
        for name, part in found.items()
    }
    lines = tool.table(found, answers).splitlines()
    assert lines[2].startswith("| start | 2 | 2.000 ±") and lines[2].endswith("| 2.000 | 2 | 50 | 0 |")
    assert lines[3].startswith("| end | 2 | 1.000 ±") and "| -1.000 [-1.000, -1.000] | -0.500" in lines[4]


def dataset(folder, kind, schema, rows):
    out = Dataset(folder, kind, "f")
    filled = ("tokens", "prompt_hash", "response_hash", "loops")  # by the store
    given = pa.schema([field for field in schema if field.name not in filled])
    for shard, part in enumerate(rows):
        out.write_table(shard, pa.Table.from_pylist([{n: r.get(n) for n in given.names} for r in part], schema=given))
    out.finish(len(rows))


def test_greedy_answers_are_read(tmp_path):
    run = RunDir(tmp_path)
    with pytest.raises(UserError, match="no answers of the evaluation 'end'"):
        tool.read_answers(run, "end", 9)
    dataset(
        run.eval_prompts,
        "prompts",
        PROMPTS,
        [[{"prompt_index": i, "prompt_ids": [i, i]} for i in part] for part in ((0, 1), (2,))],
    )
    dataset(
        run.data("answers", evaluation="end"),
        "rollouts",
        ROLLOUTS,
        [
            [
                {"prompt_index": 1, "path": 0, "response_ids": [7], "logprobs": [-1.0], "finish_reason": "stop"},
                {"prompt_index": 0, "path": 1, "response_ids": [8], "logprobs": [-1.0], "finish_reason": "stop"},
            ],
            [
                {
                    "prompt_index": 2,
                    "path": 0,
                    "response_ids": [5, 6],
                    "logprobs": [-1.0, -1.0],
                    "finish_reason": "length",
                }
            ],
        ],
    )
    found = tool.read_answers(run, "end", 9)
    assert [p.tolist() for p in found.prompts] == [[1, 1], [2, 2]]
    assert [r.tolist() for r in found.responses] == [[7], [5, 6]] and found.ended.tolist() == [True, False]
    assert not found.loops.any()
    assert len(tool.read_answers(run, "end", 1).prompts) == 1
