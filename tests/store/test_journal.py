"""Journals: whatever instant a writer dies at, the records before it stay."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npd_ascend.store.journal import Journal

RECORDS = [{"row": i, "tokens": list(range(i)), "text": "[unused10]：" * i} for i in range(6)]


def test_replay(tmp_path):
    j = Journal(tmp_path / "a" / "j")
    j.append(RECORDS[0])
    j.append_many(RECORDS[1:])
    j.close()
    assert Journal(tmp_path / "a" / "j").replay() == RECORDS


@settings(max_examples=80)
@given(cut=st.floats(0, 1), garbage=st.binary(max_size=20))
def test_torn_tail(tmp_path_factory, cut, garbage):
    """Cut anywhere, with or without rubbish behind: a prefix of whole records remains, and writing goes on."""
    path = tmp_path_factory.mktemp("j") / "j"
    j = Journal(path)
    ends = []
    for r in RECORDS:
        j.append(r)
        ends.append(path.stat().st_size)
    j.close()
    at = int(cut * ends[-1])
    data = path.read_bytes()[:at]
    whole = sum(e <= at for e in ends)
    path.write_bytes(data + garbage)
    again = Journal(path)
    assert again.replay() == RECORDS[:whole]
    again.append({"new": 1})
    again.close()
    assert Journal(path).replay() == [*RECORDS[:whole], {"new": 1}]


def test_a_flipped_byte_ends_the_replay_there(tmp_path):
    path = tmp_path / "j"
    j = Journal(path)
    j.append_many(RECORDS)
    j.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    got = Journal(path).replay()
    assert got == RECORDS[: len(got)] and len(got) < len(RECORDS)


def test_remove(tmp_path):
    j = Journal(tmp_path / "j")
    j.append({})
    j.remove()
    assert not (tmp_path / "j").exists()
    with pytest.raises(ValueError):
        j.append({})
