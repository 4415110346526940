"""Hashes and loops of stored sequences, against plain loops over them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.store.dataset import Dataset
from npd_ascend.store.traits import hashes, looping


def flat(rows):
    return np.concatenate([np.zeros(0, np.int32), *map(np.asarray, rows)]).astype(np.int32), np.cumsum(
        [0, *map(len, rows)]
    )


def naive(row) -> bool:
    for p in range(1, 65):
        n = max(32, 3 * p)
        if len(row) >= n + p and all(row[-i] == row[-i - p] for i in range(1, n + 1)):
            return True
    return False


def random_rows(seed: int, n: int = 300):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        head = rng.integers(0, 50, rng.integers(0, 40)).tolist()
        cycle = rng.integers(0, 50, rng.integers(1, 80)).tolist()
        rows.append(head + (cycle * 300)[: rng.integers(0, 330)] + rng.integers(0, 50, rng.integers(0, 2)).tolist())
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_looping_is_what_a_plain_loop_finds(seed):
    rows = random_rows(seed)
    want = [naive(r) for r in rows]
    assert 10 < sum(want) < 290
    assert looping(*flat(rows)).tolist() == want


def test_limits_of_a_loop():
    rows = [
        [5] * 33,
        [5] * 32,
        list(range(64)) * 4,
        (list(range(64)) * 4)[1:],
        list(range(65)) * 6,
        [],
        [1, 2, *[7, 8] * 30, 9],
    ]
    assert looping(*flat(rows)).tolist() == [True, False, True, False, False, False, False]
    assert looping(np.zeros(0, np.int32), np.zeros(1, np.int64)).tolist() == []
    assert looping(*flat([[3] * 40] * 5000)).all()  # over the border of a block


def test_hashes_tell_sequences_apart_and_not_their_places():
    rng = np.random.default_rng(0)
    rows = [[], [0], [0, 0], [1], [1, 0], [0, 1], [7, 8, 9], [9, 8, 7], *rng.integers(0, 150000, (20000, 3)).tolist()]
    distinct = {tuple(r) for r in rows}
    one = hashes(*flat(rows))
    assert len(set(one.tolist())) == len(distinct) and one.dtype == np.int64
    order = rng.permutation(len(rows))
    assert (hashes(*flat([rows[i] for i in order])) == one[order]).all()
    assert len(hashes(np.zeros(0, np.int32), np.zeros(1, np.int64))) == 0


def test_the_store_fills_them_in_and_takes_the_end_token_off_for_loops(tmp_path):
    ids = pa.list_(pa.int32())
    loop = [4, 5] * 20
    responses = [[*loop, 2], loop, [1, *loop], loop[:-1] + [9], []]
    finish = ["stop", "length", "reference", "length", "stop"]
    n = len(responses)
    dataset = Dataset(tmp_path, "rollouts", "f")
    dataset.write_table(
        0,
        pa.table(
            {
                "sample_id": range(n),
                "prompt_index": range(n),
                "path": pa.array([0] * n, pa.int8()),
                "response_ids": pa.array(responses, ids),
                "logprobs": pa.nulls(n, pa.list_(pa.float32())),
                "label_ids": pa.nulls(n, ids),
                "finish_reason": finish,
            }
        ),
    )
    dataset.finish(1)
    table = dataset.read_all(["tokens", "loops", "response_hash"])
    assert table["tokens"].to_pylist() == [41, 40, 41, 40, 0]
    # Of a reference the last token counts as its end, which here is a token of the cycle.
    assert table["loops"].to_pylist() == [True, True, True, False, False]
    assert table["response_hash"].to_pylist() == hashes(*flat(responses)).tolist()
