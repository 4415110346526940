"""Parameters in flat runs: every parameter once, limits kept, padding for the owners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend.train import buckets as module
from npd_ascend.train.buckets import MAX_TENSORS, make_buckets


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=120), st.integers(1, 8))
def test_every_parameter_is_in_one_bucket_behind_its_like(params, owners):
    params.sort(key=lambda p: p[1])
    sizes, keys = zip(*params, strict=True)
    made = make_buckets(sizes, keys, owners)
    assert [i for b in made for i in range(b.first, b.stop)] == list(range(len(sizes)))
    for b in made:
        assert b.sizes == sizes[b.first : b.stop] and len(set(keys[b.first : b.stop])) == 1
        assert [sum(b.sizes[:i]) for i in range(len(b.sizes))] == list(b.starts)
        assert b.length % owners == 0 and 0 <= b.length - sum(b.sizes) < owners
        assert len(b.sizes) <= MAX_TENSORS


@pytest.mark.parametrize("size,count,most", [(1000, 10, 1), (100, 40, 10)])
def test_elements_are_bounded(monkeypatch, size, count, most):
    """By a fixed number in small models, in large ones by a part of the whole; a larger parameter is alone."""
    monkeypatch.setattr(module, "MAX_ELEMENTS", 1000)
    made = make_buckets([size] * count, [0] * count)
    assert {len(b.sizes) for b in made} == {most}
    whole = make_buckets([100] * 1000 + [50_000], [0] * 1001)
    assert max(b.length for b in whole[:-1]) <= -(-150_000 // 32) and whole[-1].sizes == (50_000,)


def test_few_buckets_whatever_the_depth():
    sizes = [1000] * (9 * 80)
    assert len(make_buckets(sizes, [i % 9 < 5 for i in sorted(range(len(sizes)), key=lambda i: i % 9 < 5)])) < 60
