import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.rows.collate import collate, response_positions, segment_ends

ROWS = st.lists(st.lists(st.lists(st.integers(1, 99), max_size=6), max_size=4), max_size=4)


def naive_collate(rows, row_length, pad_id, batch):
    ids = [[pad_id] * row_length for _ in range(batch)]
    positions = [[0] * row_length for _ in range(batch)]
    segments = [[-1] * row_length for _ in range(batch)]
    for b, row in enumerate(rows):
        at = 0
        for s, sample in enumerate(row):
            for t, token in enumerate(sample):
                ids[b][at], positions[b][at], segments[b][at] = token, t, s
                at += 1
    return ids, positions, segments


@settings(max_examples=200)
@given(ROWS, st.integers(0, 2))
def test_equals_token_by_token(rows, spare):
    row_length = max([sum(map(len, r)) for r in rows] + [1]) + spare
    batch = len(rows) + spare
    made = collate([[np.array(s, np.int32) for s in r] for r in rows], row_length, 7, batch)
    ids, positions, segments = naive_collate(rows, row_length, 7, batch)
    assert made.input_ids.tolist() == ids and made.input_ids.dtype == np.int32
    assert made.position_ids.tolist() == positions and made.position_ids.dtype == np.int32
    assert made.segment_ids.tolist() == segments and made.segment_ids.dtype == np.int32
    assert made.tokens == sum(len(s) for r in rows for s in r)
    assert made.longest == max([len(s) for r in rows for s in r] + [1])
    flat = made.input_ids.reshape(-1)
    samples = [s for r in rows for s in r]
    assert [flat[a : a + n].tolist() for a, n in zip(made.starts, made.lengths, strict=True)] == samples


def test_response_positions_predict_the_response():
    rows = [[np.arange(10, 15), np.arange(20, 26)], [np.arange(30, 33)]]
    prompts, responses = np.array([3, 4, 3]), np.array([2, 2, 0])
    made = collate(rows, 12, 0, 2)
    at = response_positions(made.starts, prompts, responses)
    assert at.tolist() == [2, 3, 8, 9]
    assert made.input_ids.reshape(-1)[at + 1].tolist() == [13, 14, 24, 25]


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="row 1 has 5 tokens, 4 fit"):
        collate([[np.ones(4)], [np.ones(2), np.ones(3)]], 4, 0, 2)
    with pytest.raises(ValueError, match="2 rows do not go into a batch of 1"):
        collate([[], []], 4, 0, 1)
    with pytest.raises(ValueError, match="a sample has 3 tokens, 2 were announced"):
        collate([[np.ones(2), np.ones(3)]], 8, 0, 1, longest=2)


def test_segment_ends():
    segments = np.array([[0, 0, 0, 1, 1, -1, -1, -1], [0, 1, 1, 1, 1, 1, 1, 1]], np.int32)
    ends = segment_ends(segments, 7)
    assert ends.tolist() == [3, 5, 8, 9, 16, 16, 16] and ends.dtype == np.int64
    assert segment_ends(segments, 5).tolist() == [3, 5, 8, 9, 16]
    with pytest.raises(ValueError, match="5 segments, 4"):
        segment_ends(segments, 4)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_segment_ends_are_those_of_the_samples(rows):
    batch = collate(rows, 24, 0, max(1, len(rows)))
    ends = set(segment_ends(batch.segment_ids, 64).tolist())
    whole = {24 * (b + 1) for b in range(len(batch.segment_ids))}
    samples = {int(s + n) for s, n in zip(batch.starts, batch.lengths, strict=True) if n}
    assert ends == whole | samples
