"""Text files row by row: arrays against ``json.loads``, tables cell by cell, and what is wrong with either."""

from __future__ import annotations

import gzip
import json
import resource

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npd_ascend.data import texts
from npd_ascend.data.bounded import MAX_ROW
from npd_ascend.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3),
    max_leaves=6,
)
EACH = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows(path):
    return [row for _, row in texts.json_rows(path)]


@EACH
@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), min_size=1, max_size=8),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(1, 40),
)
def test_arrays_of_any_rows_in_any_pieces(tmp_path, monkeypatch, found, indent, ascii_only, chunk):
    monkeypatch.setattr(texts, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    try:
        path.write_text(json.dumps(found, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    except UnicodeEncodeError:
        return
    assert rows(path) == found


@EACH
@given(st.binary(max_size=40), st.integers(1, 9))
def test_anything_behind_a_bracket_is_rows_or_one_line(tmp_path, monkeypatch, data, chunk):
    monkeypatch.setattr(texts, "_CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, ' + data)
    try:
        assert rows(path) == json.loads(path.read_bytes())
    except UserError as e:
        assert "a.json" in str(e) and "\n" not in str(e)


BAD = {
    "nothing": ("[]", None),
    "no object": ('[{"a": 1}, 3]', "row 2: holds a number"),
    "a list": ("[[1]]", "row 1: holds a list"),
    "no comma": ('[{"a": 1}\n{"a": 2}]', "row 1: not valid JSON ('{' after it in line 2)"),
    "comma at the end": ('[{"a": 1},\n]', "row 2: not valid JSON (Expecting value in line 2)"),
    "cut off between": ('[{"a": 1},', "row 2: not valid JSON (the file ends before the array does)"),
    "cut off inside": ('[{"a": 1}, {"a": "xy', "row 2: not valid JSON (the file ends before the array does)"),
    "not closed": ('[{"a": 1}', "row 1: not valid JSON (the file ends before the array does)"),
    "single quotes": ("[\n{'a': 1}" + " " * 99 + "]", "row 1: not valid JSON (Expecting property name enclosed"),
    "more behind": ('[{"a": 1}]\n{"a": 2}', "line 2: there is more behind the end of the array"),
    "deep": ('[{"a": ' + "[" * 100_000, "row 1: not usable JSON"),
    "too large": ('[{"a": "' + "x" * (MAX_ROW + 10) + '"}]', "row 1: this row has more than 4 MB"),
}


@pytest.mark.parametrize("case", BAD)
def test_array_that_is_damaged(tmp_path, case):
    text, said = BAD[case]
    path = tmp_path / "a.json"
    path.write_text(text)
    if said is None:
        assert rows(path) == []
        return
    with pytest.raises(UserError) as e:
        rows(path)
    assert f"a.json, {said}" in str(e.value)


def test_not_utf8_in_an_array(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "caf\xe9"}]')
    with pytest.raises(UserError, match=r"a.json, row 1: not UTF-8 \(byte 0xe9"):
        rows(tmp_path / "a.json")


def test_array_of_any_length_takes_little_memory(tmp_path):
    row = json.dumps({"prompt": "x" * 900})
    with gzip.open(tmp_path / "a.json.gz", "wt", compresslevel=1) as f:
        f.write("[" + ",".join([row] * 1000))
        for _ in range(99):
            f.write("," + ",".join([row] * 1000))
        f.write("]")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in texts.json_rows(tmp_path / "a.json.gz")) == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10  # kB, of 92 MB


def test_zstd_of_several_frames(tmp_path):
    frames = [pa.compress(f'{{"a": {i}}}\n'.encode(), codec="zstd", asbytes=True) for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert rows(tmp_path / "a.jsonl.zst") == [{"a": i} for i in range(3)]
    (tmp_path / "b.jsonl.zst").write_bytes(b"plain text")
    with pytest.raises(UserError, match="b.jsonl.zst: cannot be read"):
        rows(tmp_path / "b.jsonl.zst")


TABLES = {
    "fewer cells": ("a,b\n1,2\n3\n", "line 3: 1 cells, but line 1 names 2 columns"),
    "more cells": ("a,b\n1,2,3\n", "line 2: 3 cells"),
    "a quote left open": ('a,b\n1,"2\n3,4\n', "line 2: not a readable row"),
    "an endless cell": ('a,b\n1,"' + "x\n" * (MAX_ROW // 2 + 9), "line 2: this row has more than 4 MB"),
    "an endless line": ("a,b\n" + "x" * (MAX_ROW + 9), "line 2: this line has more than 4 MB"),
}


@pytest.mark.parametrize("case", TABLES)
def test_table_that_is_damaged(tmp_path, case):
    text, said = TABLES[case]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError) as e:
        list(texts.csv_rows(tmp_path / "t.csv"))
    assert f"t.csv, {said}" in str(e.value)


def test_cells_with_line_feeds_keep_the_place_of_their_row(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"x\r\ny",1\r\n\r\n"z ""q""",2\r\n')
    assert list(texts.csv_rows(tmp_path / "t.csv")) == [
        (f"{tmp_path / 't.csv'}, line 2", {"a": "x\r\ny", "b": "1"}),
        (f"{tmp_path / 't.csv'}, line 5", {"a": 'z "q"', "b": "2"}),
    ]
