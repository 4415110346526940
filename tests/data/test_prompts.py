"""Readers: what is in a file comes out, and what is wrong with it is said in one line."""

from __future__ import annotations

import gzip
import json
import os
import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npd_ascend.config.schema import DataConfig
from npd_ascend.data.bounded import MAX_ROW
from npd_ascend.data.prompts import measure, read_prompts
from npd_ascend.errors import UserError

CONFIG = DataConfig(prompts=[], response_field="response", answer_field="answer")


def read(path: Path, config: DataConfig = CONFIG, **more):
    return list(read_prompts([path], config, **more))


ROWS = [{"prompt": "a", "response": "b", "answer": "c"}, {"prompt": "自然", "response": None, "answer": 7}]


def test_all_formats_give_the_same_rows(tmp_path):
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS) + "\n\n"
    (tmp_path / "plain.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(
        pa.table({"prompt": ["a", "自然"], "response": ["b", None], "answer": ["c", "7"]}), tmp_path / "table.parquet"
    )
    wanted = [("a", "b", "c"), ("自然", None, "7")]
    for name in ("plain.jsonl", "bom.json", "packed.jsonl.gz", "table.parquet"):
        rows = read(tmp_path / name)
        assert [(r.text, r.response, r.answer) for r in rows] == wanted, name
        assert rows[0].messages == [{"role": "user", "content": "a"}]
        assert str(tmp_path / name) in rows[1].where and rows[1].where.endswith(("line 2", "row 2"))


def test_folder_stands_for_its_files_and_limit_counts_over_files(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": f"{name} {i}"}) + "\n" for i in range(3)))
    (tmp_path / "notes.txt").write_text("no prompts")
    rows = read(tmp_path, DataConfig(prompts=[]), limit=4)
    assert [r.text for r in rows] == ["a.jsonl 0", "a.jsonl 1", "a.jsonl 2", "b.jsonl 0"]


def test_messages_and_system_turn(lines):
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "go"},
    ]
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    rows = read(lines({"prompt": chat}, {"prompt": own}), DataConfig(prompts=[], system="be brief"))
    assert rows[0].messages == [{"role": "system", "content": "be brief"}, *chat] and rows[0].text == "go"
    assert rows[1].messages == own


def test_messages_from_parquet(tmp_path):
    pq.write_table(pa.table({"prompt": [[{"role": "user", "content": "hi"}]]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet", DataConfig(prompts=[]))[0].text == "hi"


GOOD = '{"prompt": "a", "response": "r", "answer": "1"}'
BAD_LINES = {
    "cut off": ('{"prompt": "a"', "line 2: not valid JSON"),
    "no object": ("[1, 2]", "line 2: holds a list"),
    "a number": ("17", "line 2: holds a number"),
    "null": ("null", "line 2: holds null"),
    "single quotes": ("{'prompt': 'a'}", "line 2: not valid JSON"),
    "two objects": ('{"prompt": "a"} {"prompt": "b"}', "line 2: not valid JSON"),
    "deep": ("[" * 100_000, "line 2: not usable JSON"),
    "long number": ('{"prompt": ' + "1" * 5000 + "}", "line 2: not usable JSON"),
    "missing field": ('{"title": "a", "id": 3}', "line 2: no field 'prompt'; the fields there are: 'title', 'id'"),
    "null prompt": ('{"prompt": null}', "line 2: no field 'prompt'; the fields there are: none"),
    "empty prompt": ('{"prompt": " \\n "}', "line 2: the prompt is empty"),
    "number prompt": ('{"prompt": 3}', "line 2: field 'prompt' is a number"),
    "object prompt": ('{"prompt": {"role": "user"}}', "line 2: field 'prompt' is an object"),
    "no messages": ('{"prompt": []}', "line 2: field 'prompt' is an empty list"),
    "message of text": ('{"prompt": ["hi"]}', "line 2: message 1 has no role and content"),
    "no content": ('{"prompt": [{"role": "user"}]}', "line 2: message 1 has no role and content"),
    "content list": (
        '{"prompt": [{"role": "user", "content": ["x"]}]}',
        "part 1 of the content of message 1 is text without a type",
    ),
    "ends with answer": ('{"prompt": [{"role": "assistant", "content": "x"}]}', "ends with the assistant's turn"),
    "empty message": ('{"prompt": [{"role": "user", "content": ""}]}', "line 2: the prompt is empty"),
    "half surrogate": ('{"prompt": "\\ud83d"}', "line 2: field 'prompt' has half of a surrogate pair"),
    "no response": ('{"prompt": "a", "answer": "1"}', "line 2: no field 'response'"),
    "empty response": ('{"prompt": "a", "response": "", "answer": "1"}', "line 2: 'response' is empty"),
    "response list": ('{"prompt": "a", "response": ["x"], "answer": "1"}', "line 2: field 'response' is a list"),
    "no answer": ('{"prompt": "a", "response": "r"}', "line 2: no field 'answer'"),
    "answer true": ('{"prompt": "a", "response": "r", "answer": true}', "line 2: field 'answer' is true or false"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line(lines, case):
    line, message = BAD_LINES[case]
    with pytest.raises(UserError) as e:
        read(lines(GOOD, line), need_reference=True, need_answer=True)
    assert message in str(e.value) and "prompts.jsonl" in str(e.value)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_bad_files(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    (tmp_path / "utf16.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-16")
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 5000)[:-20])
    (tmp_path / "no.jsonl.gz").write_bytes(b"plain text")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 but not really")
    (tmp_path / "table.txt").write_text("prompt\na\n")
    (tmp_path / "folder").mkdir()
    cases = {
        "latin.jsonl": "line 1: not UTF-8 (byte 0xe9 at column 16)",
        "utf16.jsonl": "line 1: not UTF-8",
        "empty.jsonl": "there are no rows",
        "cut.jsonl.gz": "cannot be read",
        "no.jsonl.gz": "cannot be read",
        "no.parquet": "not a readable Parquet file",
        "table.txt": "unknown kind of file",
        "gone.jsonl": "no such",
        "folder": "no prompt files",
    }
    for name, message in cases.items():
        with pytest.raises(UserError) as e:
            read(tmp_path / name, DataConfig(prompts=[]))
        assert message in str(e.value) and name in str(e.value)
    with pytest.raises(UserError, match="no prompt files are given"):
        list(read_prompts([], CONFIG))


def test_settings_that_contradict_the_call(lines):
    path = lines(GOOD)
    with pytest.raises(UserError, match="line 1: no reference answer; the fields there are: 'prompt'"):
        read(lines({"prompt": "a"}, name="none.jsonl"), DataConfig(prompts=[]), need_reference=True)
    with pytest.raises(UserError, match="answer_field is not set"):
        read(path, DataConfig(prompts=[]), need_answer=True)
    with pytest.raises(UserError, match="raw"):
        read(lines({"prompt": [{"role": "user", "content": "a"}]}), DataConfig(prompts=[], template="raw"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["prompt", "role", "content", "response"]), x)
        ),
        max_leaves=8,
    ).map(lambda v: json.dumps(v).encode())
)
def test_any_bytes_give_rows_or_one_clear_line(tmp_path, data):
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(data)
    try:
        rows = read(path, DataConfig(prompts=[], response_field="response"))
        assert rows and all(r.text.strip() for r in rows)
    except UserError as e:
        assert "fuzz.jsonl" in str(e) and "\n" not in str(e)


def test_parquet_reads_the_named_columns_only(tmp_path):
    """A column that nobody asked for may hold anything, of any size: here 600 GB in less than 2 kB."""
    path, n = tmp_path / "t.parquet", 200_000
    heavy = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array(["x" * (3 << 20)]))
    pq.write_table(pa.table({"prompt": ["a"] * n, "heavy": heavy}), path, compression="zstd")
    assert path.stat().st_size < 2000
    assert len(read(path, DataConfig(prompts=[]), limit=1000)) == 1000
    with pytest.raises(UserError, match="row 1: no field 'question'; the fields there are: 'prompt', 'heavy'"):
        read(path, DataConfig(prompts=[], prompt_field="question"))


BOMBS = {
    "a dictionary": (
        {"prompt": pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * (60 << 20)]))},
        "row 1: this row has",
    ),
    "a long run": ({"prompt": pa.array(["a", "b", "x" * (600 << 20)])}, "rows 1 to 64 take more than 1 GB to decode"),
    "nulls in a list": (
        {"prompt": pa.ListArray.from_arrays(pa.array([0, 10_000_000], pa.int32()), pa.nulls(10_000_000))},
        "row 1: this row has|rows 1 to 64",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_parquet_that_decodes_to_gigabytes(tmp_path, name):
    columns, said = BOMBS[name]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd")
    assert path.stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=said) as e:
        read(path, DataConfig(prompts=[]))
    assert "t.parquet" in str(e.value) and "4 MB" in str(e.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kB


def test_gzip_that_unpacks_to_one_endless_line(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    with gzip.open(path, "wb") as f:
        f.write(b'{"prompt": "a"}\n{"prompt": "')
        for _ in range(64):
            f.write(b"x" * (1 << 20))
    rows = read_prompts([path], DataConfig(prompts=[]))
    assert next(rows).text == "a"
    with pytest.raises(UserError, match="line 2: this line has more than 4 MB"):
        next(rows)


def test_row_at_the_limit_is_taken(tmp_path):
    text = "x" * (MAX_ROW - 100)
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    pq.write_table(pa.table({"prompt": [text] * 3}), tmp_path / "t.parquet")
    assert [len(r.text) for r in read(tmp_path, DataConfig(prompts=[]))] == [len(text)] * 4


def test_reader_of_parquet_ends_with_who_asked(tmp_path):
    pq.write_table(pa.table({"prompt": ["x" * 1000] * 100_000}), tmp_path / "t.parquet")
    rows = read_prompts([tmp_path / "t.parquet"], DataConfig(prompts=[]))
    next(rows)
    children = {int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid()}
    rows.close()
    assert any(not Path(f"/proc/{pid}").exists() for pid in children)


def _parent(proc: Path) -> int:
    try:
        return int((proc / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_numbers_and_dictionaries_of_parquet(tmp_path):
    pq.write_table(
        pa.table(
            {
                "prompt": pa.array(["a", "b"]).dictionary_encode(),
                "answer": [7, 8],
                "response": ["r", None],
                "other": [b"\xff", b""],
            }
        ),
        tmp_path / "t.parquet",
    )
    assert [(r.text, r.answer, r.response) for r in read(tmp_path / "t.parquet")] == [("a", "7", "r"), ("b", "8", None)]


def test_measure_counts_what_is_read(tmp_path, lines):
    lines({"prompt": "a"}, {"prompt": "b"}, name="a.jsonl")
    pq.write_table(pa.table({"prompt": ["x"] * 5}), tmp_path / "b.parquet")
    assert measure([tmp_path])[0] == 7
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match="c.parquet: not a readable Parquet file"):
        measure([tmp_path])


def arrow(path: Path, table: pa.Table, compression: str | None = None) -> bytes:
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as f:
        f.write_table(table)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cut", "offsets", "schema", "nothing", "text"])
def test_damaged_arrow_is_one_line(tmp_path, where):
    path = tmp_path / "t.arrow"
    data = bytearray(arrow(path, pa.table({"prompt": ["one", "two", "three"] * 50})))
    at = bytes(data).rindex((3).to_bytes(4, "little") + (6).to_bytes(4, "little"))
    if where == "offsets":
        data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "offsets": data,
            "schema": b"\xff" * 40 + data[40:],
            "nothing": b"",
            "text": b"prompt\na\n",
        }[where]
    )
    with pytest.raises(UserError) as e:
        read(path, DataConfig(prompts=[]))
    assert "t.arrow" in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 400


@pytest.mark.slow
def test_arrow_that_unpacks_to_gigabytes(tmp_path):
    path = tmp_path / "t.arrow"
    arrow(path, pa.table({"prompt": pa.array(["x" * (600 << 20)] * 2, pa.large_string())}), "zstd")
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="t.arrow: rows 1 to the end of a batch take more than 1 GB to decode"):
        read(path, DataConfig(prompts=[]))


def test_arrow_reads_the_columns_it_needs_of_files_and_streams(tmp_path):
    table = pa.table({"blob": pa.array([b"\xff", b""]), "prompt": ["a", "b"], "tokens": [[1], [2, 3]]})
    arrow(tmp_path / "stream.arrow", table)
    with pa.ipc.new_file(str(tmp_path / "file.arrow"), table.schema) as f:
        f.write_table(table, max_chunksize=1)
    assert [r.text for r in read(tmp_path, DataConfig(prompts=[]))] == ["a", "b"] * 2
    assert measure([tmp_path])[0] == 4
    with pytest.raises(UserError, match="row 1: field 'blob' is of the Arrow type binary"):
        read(tmp_path / "stream.arrow", DataConfig(prompts=[], prompt_field="blob"))
