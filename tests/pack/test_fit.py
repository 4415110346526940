import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.errors import UserError
from npd_ascend.pack.lengths import Samples, fit

PAIRS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=30)


def samples(pairs):
    prompt, response = (np.array(x, np.int64) for x in zip(*pairs, strict=True))
    return Samples(np.arange(len(pairs)) * 3, prompt, response)


@given(PAIRS, st.integers(2, 40), st.sampled_from(["truncate", "drop"]))
def test_every_token_is_in_a_row_or_counted(pairs, row_length, too_long):
    given_ = samples(pairs)
    try:
        kept, losses = fit(given_, row_length, too_long)
    except UserError as e:
        assert "none of" in str(e)
        fits = [p + r <= row_length or (too_long == "truncate" and p < row_length) for p, r in pairs if r]
        assert not any(fits)
        return
    assert (kept.total <= row_length).all() and (kept.response >= 1).all()
    assert kept.total.sum() + losses.dropped_tokens + losses.truncated_tokens == given_.total.sum()
    assert len(kept.ordinals) + losses.dropped_samples == len(pairs)
    whole = {3 * i: pair for i, pair in enumerate(pairs)}
    cut = 0
    for o, p, r in zip(kept.ordinals.tolist(), kept.prompt.tolist(), kept.response.tolist(), strict=True):
        assert p == whole[o][0]
        assert r == (min(whole[o][1], row_length - p) if too_long == "truncate" else whole[o][1])
        cut += r < whole[o][1]
    assert cut == losses.truncated_samples
    if too_long == "drop":
        assert losses.truncated_tokens == 0


def test_truncation_leaves_room_for_one_token_or_drops():
    kept, losses = fit(samples([(7, 9), (8, 1), (3, 2)]), 8, "truncate")
    assert kept.ordinals.tolist() == [0, 6] and kept.response.tolist() == [1, 2]
    assert (losses.truncated_tokens, losses.dropped_samples, losses.dropped_tokens) == (8, 1, 9)


def test_refuse_names_the_longest():
    with pytest.raises(UserError, match="1 of 2 samples are longer than pack.row_length 8 .*has 9 tokens, sample 3"):
        fit(samples([(3, 5), (4, 5)]), 8, "refuse")
    kept, losses = fit(samples([(3, 5), (4, 4)]), 8, "refuse")
    assert len(kept.ordinals) == 2 and losses.dropped_samples == 0


def test_nothing_left():
    with pytest.raises(UserError, match="none of 1 kept samples fits into pack.row_length 4"):
        fit(samples([(5, 1)]), 4, "truncate")
