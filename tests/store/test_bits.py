"""Variable-width codes against naive ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.store.bits import Alphabet, pack_into, windows


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(0, 300), st.integers(0, 99), st.booleans())
def test_fit_finds_the_cheapest_code_and_it_decodes(bits, n, seed, skewed):
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, 1 << bits, n) if not skewed else np.minimum(rng.geometric(0.3, n), (1 << bits) - 1)
    counts = np.bincount(symbols, minlength=1 << bits)
    a = Alphabet.fit(counts, bits, 32)
    classes, payload = a.encode(symbols)
    assert (payload < 1 << a.class_widths[classes].astype(np.int64)).all()
    table = np.concatenate([a.table, np.zeros(int(a.starts[-1]) - len(a.table), np.uint32)])
    back = [table[a.starts[c] + p] if c < len(a.widths) else p for c, p in zip(classes, payload, strict=True)]
    assert back == symbols.tolist()
    spent = n * a.class_bits + int(a.class_widths[classes].sum()) + 32 * len(a.table)
    assert spent <= n * bits
    # No two-class code with a table is cheaper.
    by_count = np.sort(counts)[::-1]
    used = int((counts > 0).sum())
    for w in range(bits):
        size = min(1 << w, used)
        held = int(by_count[:size].sum())
        assert spent <= n + held * w + (n - held) * bits + 32 * size


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 9)), max_size=40), st.integers(0, 99))
def test_packed_fields_are_found_again(fields, seed):
    rng = np.random.default_rng(seed)
    widths = np.array([w for w, _ in fields], np.int64)
    gaps = np.array([g for _, g in fields], np.int64)
    values = rng.integers(0, 1 << 24, len(fields)) & ((1 << widths) - 1)
    starts = np.cumsum(widths + gaps) - widths
    words = np.zeros(int((widths + gaps).sum()) // 32 + 3, np.uint32)
    pack_into(words, values.astype(np.uint32), starts)
    stream = int.from_bytes(words.tobytes(), "little")
    found = [stream >> s & ((1 << w) - 1) for s, w in zip(starts.tolist(), widths.tolist(), strict=True)]
    assert found == values.tolist()
    wide = windows(words)
    looked = wide[starts >> 5] >> (starts & 31).astype(np.uint64) & ((1 << widths) - 1).astype(np.uint64)
    assert looked.tolist() == values.tolist()


@pytest.mark.parametrize("bits,widths,table", [
    (0, (), []), (30, (), []), (8, (3, 3, 4), []), (8, (2, 1, 3), []), (8, (1, 2), []), (8, (8,), []),
    (8, (0,), [1, 2]), (8, (1,), [256]), (8, tuple(range(-1, 6)), []),
])  # fmt: skip
def test_codes_that_no_writer_makes(bits, widths, table):
    with pytest.raises(ValueError):
        Alphabet(bits, widths, np.array(table, np.uint32))
