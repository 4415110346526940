"""Scores as they are stored, and the tables made of them."""

from __future__ import annotations

import dataclasses

import pytest

from npd_ascend.bench.paper import COLUMNS, ELEVEN
from npd_ascend.bench.results import Result, Sample, read_folder, read_result, read_samples, write_result
from npd_ascend.bench.table import compare, tabulate
from npd_ascend.errors import UserError
from npd_ascend.evaluate.interval import wilson
from npd_ascend.report import build as report
from npd_ascend.report.collect import collect


def result(benchmark: str = "gsm8k", checkpoint: str = "/m/teacher", scores=(1.0, 0.0, 0.0, 0.0), **changes) -> Result:
    samples = [Sample(f"test.jsonl:{i}", "q", ["a"], s) for i, s in enumerate(scores)]
    fields = {
        "benchmark": benchmark,
        "title": benchmark.upper(),
        "checkpoint": checkpoint,
        "checkpoint_id": checkpoint,
        "fingerprint": "f",
        "settings": {"data": {"a": "1"}, "published_data": {"a": "1"}},
        "rows": len(samples),
        "published_rows": len(samples),
        "truncated": 0.0,
        "mean_tokens": 1.0,
        "cut_prompts": 0,
        "versions": {},
        "seconds": 1.0,
        "asked": 1,
        "tokens": 1,
        **Result.summary(samples),
    }
    return Result(**{**fields, **changes})


def test_what_is_written_is_read(tmp_path):
    samples = [Sample("test.jsonl:1", "说", [[-1.5, True]], 0.0), Sample("test.jsonl:2", "q", ["a", "b"], 0.5)]
    written = result()
    write_result(tmp_path / "x", written, samples)
    assert read_result(tmp_path / "x", "gsm8k") == written and read_folder(tmp_path) == [written]
    assert list(read_samples(tmp_path / "x", "gsm8k")) == samples
    path = tmp_path / "x" / "gsm8k.json"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    assert read_result(tmp_path / "x", "gsm8k") is None  # its seal is broken


def test_intervals():
    assert result().interval == wilson(1, 4)
    low, high = result(scores=(0.5, 0.25, 1.0, 0.0)).interval
    assert 0 <= low < 0.4375 < high <= 1 and (low, high) != wilson(2, 4)


def test_marks_say_in_what_a_score_is_another_measurement():
    assert result().marks == []
    assert result(rows=9, published_rows=9).marks == ["4 of 9 rows"]
    assert result(published_rows=5).marks == ["4 rows, 5 are published"]
    other = {"data": {"a": "2", "b": "3"}, "published_data": {"a": "1", "b": ""}}
    assert [m.partition(" (")[0] for m in result(settings=other).marks] == [
        "other data than published",
        "data whose published hash is not known",
    ]
    short = {**result().settings, "max_new_tokens": 64, "usual_max_new_tokens": 1024}
    assert result(settings=short).marks == ["answers of at most 64 tokens, usual are 1024"]


def test_checkpoints_side_by_side_with_the_paper():
    results = [result(), result("mmlu", scores=(1.0, 1.0)), result("gsm8k", "/runs/a/export", rows=9, published_rows=9)]
    table = tabulate(results, [c for c in COLUMNS if c.title == "NPD 1B"])
    assert table.head == ["benchmark", "m/teacher", "a/export", "paper, Table 8: NPD 1B"]
    assert [row[0] for row in table.rows] == ["MMLU", "GSM8K", "AVG of 11"]
    assert table.rows[0][2] == "–" and table.rows[1][1].startswith("25.00 [") and table.rows[1][3] == "78.24"
    assert table.rows[1][2].endswith("] a") and table.notes == ["a: 4 of 9 rows"]
    assert table.rows[2] == ["AVG of 11", "–", "–", "64.37"]


def test_the_mean_needs_all_eleven():
    every = [result(name, scores=(1.0, 0.0)) for name in ELEVEN]
    assert tabulate(every, []).rows[-1] == ["AVG of 11", "50.00"]
    assert tabulate([dataclasses.replace(r, cut_prompts=1) for r in every], []).rows[-1] == [
        "HUMANEVAL",
        *tabulate([dataclasses.replace(every[-1], cut_prompts=1)], []).rows[0][1:],
    ]


@pytest.mark.parametrize("column", [c for c in COLUMNS if len(c.scores) > 1], ids=lambda c: f"{c.table} {c.title}")
def test_the_paper_s_means_are_those_of_its_figures(column):
    figures = [v for k, v in column.scores.items() if k != "avg"]
    assert sum(figures) / len(figures) == pytest.approx(column.scores["avg"], abs=0.015)


def test_forms(tmp_path):
    write_result(tmp_path, result(checkpoint="/m/a_b", rows=9, published_rows=9), [])
    lines = compare([tmp_path], "markdown", "6").splitlines()
    assert lines[0] == "| benchmark | a_b | paper, Table 6: SFT + GRPO 1B | paper, Table 6: NPD + GRPO 1B |"
    assert lines[1] == "| --- | ---: | ---: | ---: |" and "a: 4 of 9 rows" in lines
    text = compare([tmp_path], "latex")
    assert text.startswith("\\begin{tabular}{lr}") and "a\\_b" in text and text.count("\\\\\n") == 2


def test_bad_requests(tmp_path):
    write_result(tmp_path, result(), [])
    for folders, form, paper, said in (
        ([tmp_path / "none"], "markdown", "", "no scores below"),
        ([tmp_path], "html", "", "choose markdown or latex"),
        ([tmp_path], "markdown", "9", "known are tables 6, 7, 8, 15, 16, 17"),
    ):
        with pytest.raises(UserError, match=said):
            compare(folders, form, paper)


def test_the_section_of_a_run_s_report(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    page = report.render(collect(tmp_path))
    assert "Public benchmarks" not in page
    write_result(tmp_path / "bench" / "teacher-1", result(rows=9, published_rows=9, title="<GSM8K>"), [])
    page = report.render(collect(tmp_path))
    assert "Public benchmarks" in page and "&lt;GSM8K&gt;" in page and "4 of 9 rows" in page
    assert page.count("paper, Table") >= 3 and "SupKD" not in page
