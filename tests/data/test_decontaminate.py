"""Overlap with benchmarks: a naive search finds the same, planted runs are found, and what is kept is the rest."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npd_ascend import cli
from npd_ascend.data.decontaminate import decontaminate, runs, words_of
from npd_ascend.errors import UserError

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def naive(a: list[str], b: list[str], n: int) -> bool:
    def all_runs(words):
        if len(words) < n:
            return {tuple(words)} if len(words) >= min(n, 5) else set()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    return bool(all_runs(a) & all_runs(b))


@given(st.lists(st.sampled_from("ab"), max_size=12), st.lists(st.sampled_from("ab"), max_size=12), st.integers(5, 7))
def test_runs_agree_with_a_naive_search(a, b, n):
    assert bool(set(runs(a, n).tolist()) & set(runs(b, n).tolist())) == naive(a, b, n)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP, it's 3.5!", ["don", "t", "stop", "it", "s", "3", "5"]),
        ("人工智能 is AI", [*"人工智能", "is", "ai"]),
        ("snake_case  café\n", ["snake", "case", "café"]),
        ("...", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_planted_overlap(tmp_path):
    """Whatever the field, however it is written; 12 words in a row are not enough."""
    words = LONG.split()
    benchmark = jsonl(tmp_path / "bench.jsonl", {"question": f"Zero {LONG}.", "id": 3})
    prompts = jsonl(
        tmp_path / "prompts.jsonl",
        {"prompt": "Say: " + ", ".join(words[:13]).upper()},
        {"prompt": " ".join(words[:12])},
        {"prompt": "nothing", "response": f"zero {LONG} seventeen"},
        {"prompt": [{"role": "user", "content": f"Well, {LONG}"}]},
        {"prompt": " ".join(words[:12] + ["or"] + words[12:])},
    )
    found = decontaminate([prompts], [benchmark], tmp_path / "clean.jsonl")
    assert (found.rows, found.overlapping, found.benchmarks[0].rows) == (5, 3, 3)
    assert [where.rpartition(" ")[2] for where, _, _ in found.examples] == ["1", "3", "4"]
    lines = prompts.read_text().splitlines()
    clean = (tmp_path / "clean.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in clean] == [json.loads(lines[i]) for i in (1, 4)]


def test_kinds_of_files(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    with open(folder / "a.csv", "w", newline="") as f:
        csv.writer(f).writerow(["What is the capital of New Zealand?", "A, B", f"{LONG} and"])
    with gzip.open(folder / "b.jsonl.gz", "wt") as f:
        f.write(json.dumps({"test": {"code": ["def f(): return " + LONG.replace("one", "uno")]}}) + "\n")
    (folder / "c.txt").write_text("今天天气很好我们一起去公园玩\n\n")
    (folder / "notes.md").write_text(LONG)
    prompts = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "What is the capital of New Zealand?"},
        {"prompt": LONG},
        {"prompt": LONG.replace("one", "uno")},
        {"prompt": "好的，今天天气很好，我们一起去公园玩吧"},
        {"prompt": "What is the capital"},
    )
    found = decontaminate([prompts], [folder, folder / "c.txt"])
    assert found.overlapping == 4 and [b.rows for b in found.benchmarks] == [4, 1]
    report = found.markdown()
    assert str(tmp_path) not in report and "| bench/c.txt | 1 | 2 | 1 |" in report


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("x.parquet", b"PAR1", "unknown kind"),
        ("x.jsonl", b"{", "line 1"),
        ("x.jsonl.gz", b"no", "cannot be read"),
        ("x.csv", b"\xff\n", "cannot be read"),
        ("empty", "folder", "no benchmark"),
    ],
)
def test_refusals(tmp_path, name, content, message):
    path = tmp_path / name
    path.mkdir() if content == "folder" else content is not None and path.write_bytes(content)
    good = jsonl(tmp_path / "p.jsonl", {"prompt": "a"})
    with pytest.raises(UserError, match=message):
        decontaminate([good], [path], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    if name.endswith((".parquet", ".csv")):
        with pytest.raises(UserError, match="expected JSON"):
            decontaminate([path], [good])


def test_command(tmp_path, monkeypatch, capsys):
    """Exit code 1 where prompts overlap, unless the clean ones are written."""
    prompts, benchmark = (jsonl(tmp_path / f"{n}.jsonl", {"text": LONG}) for n in "pb")
    for extra, code in (
        ([], 1),
        (["--out", str(tmp_path / "clean.jsonl")], 0),
        (["--ngram", "17"], 1),
        (["--report", str(tmp_path / "report.md")], 1),
    ):
        monkeypatch.setattr("sys.argv", ["npd", "decontaminate", str(prompts), "--against", str(benchmark), *extra])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == code
        assert "**1 rows overlap**" in capsys.readouterr().out
    assert (tmp_path / "clean.jsonl").read_text() == ""
    assert "p.jsonl" in (tmp_path / "report.md").read_text()
