"""What each benchmark reads, asks and takes for right, on synthetic rows of the published forms."""

from __future__ import annotations

import pytest

from npd_ascend.bench.registry import BENCHMARKS, Answered, Chosen, find
from npd_ascend.bench.rows import Row, spread
from npd_ascend.errors import UserError
from tests.bench.conftest import FILES

ROWS = {"mmlu": 8, "cmmlu": 3, "ceval": 3, "cluewsc": 2, "gsm8k": 2, "mbpp": 2, "gpqa": 2}
RIGHT = {
    "gsm8k": ("so 3 + 4 = 7. The answer is \\boxed{7}.", "It is 8."),
    "math500": ("\\boxed{2.5}", "\\boxed{5}"),
    "aime24": ("\\boxed{204}", "204 or 205"),
    "humaneval": ("```python\ndef twice(x):\n    return 2 * x\n```", "    return x"),
    "mbpp": ("```python\ndef twice(x):\n    return x + x\n```", "twice"),
    "drop": ("There are three.\nAnswer: 3", "Answer: 4"),
}


def test_every_benchmark_is_known():
    assert set(BENCHMARKS.names()) == FILES.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_rows_and_questions(name, make_folder):
    (benchmark,) = find([name])
    rows = benchmark.rows(make_folder(name))
    assert len(rows) == ROWS.get(name, 1) and benchmark.count >= len(rows)
    for row in rows:
        assert benchmark.asked(row).strip()
        if isinstance(benchmark, Chosen):
            choices = benchmark.choices(row)
            assert 0 <= benchmark.right(row) < len(choices) and len(set(choices)) == len(choices)
    for source in benchmark.sources:
        assert source.licence and source.origin and len(source.digest(make_folder(name))) == 64
        assert bool(source.sha256) == benchmark.proven


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_one_line_with_its_source(name, tmp_path):
    (benchmark,) = find([name])
    with pytest.raises(UserError, match="is missing; it comes from") as e:
        benchmark.rows(tmp_path)
    assert benchmark.sources[0].origin in str(e.value) and benchmark.sources[0].licence in str(e.value)


@pytest.mark.parametrize("name", sorted(FILES))
def test_rows_of_another_form_are_one_line(name, make_folder):
    folder = make_folder(name)
    path = folder / next(reversed(FILES[name]))
    path.write_bytes(b'{"something": "else"}\n')
    (benchmark,) = find([name])
    with pytest.raises(UserError) as e:
        for row in benchmark.rows(folder):
            benchmark.asked(row)
    assert path.name in str(e.value) and "\n" not in str(e.value)


def test_an_exam_shows_five_solved_questions_of_its_subject(make_folder):
    (benchmark,) = find(["mmlu"])
    text = benchmark.asked(benchmark.rows(make_folder("mmlu"))[1])
    blocks = text.split("\n\n")
    assert blocks[0] == "The following are multiple choice questions (with answers) about us foreign policy."
    assert len(blocks) == 7 and [b[-1] for b in blocks[1:6]] == list("ABCDA")
    assert blocks[-1] == "What is 1 + 2?\nA. 6\nB. 3\nC. 4\nD. 5\nAnswer:"


def test_chinese_exams_name_the_subject(make_folder):
    for name, heading in {"cmmlu": "以下是关于农学的单项选择题", "ceval": "以下是中国关于法学的单项选择题"}.items():
        (benchmark,) = find([name])
        text = benchmark.asked(benchmark.rows(make_folder(name))[0])
        assert text.startswith(heading) and text.endswith("\n答案：")


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_judges(name, make_folder):
    (benchmark,) = find([name])
    assert isinstance(benchmark, Answered)
    try:
        benchmark.check()
    except UserError as e:
        pytest.skip(str(e))
    row = benchmark.rows(make_folder(name))[0]
    right, wrong = RIGHT[name]
    assert benchmark.score(row, right) == 1 and benchmark.score(row, wrong) == 0 == benchmark.score(row, "")


def test_choices_of_gpqa_are_shuffled_alike_each_time(make_folder):
    (benchmark,) = find(["gpqa"])
    folder = make_folder("gpqa")
    first, again = benchmark.rows(folder), benchmark.rows(folder)
    assert first == again
    for row, right in zip(first, ("neon", "iron"), strict=True):
        assert row.fields["choices"][row.fields["answer"]] == right and len(set(row.fields["choices"])) == 4


@pytest.mark.parametrize(
    ("answer", "f1"),
    [
        ("Answer: 3", 1.0),
        ("3", 1.0),
        ("Answer: 3 passes", 0.67),
        ("Answer: the three passes.", 0.5),
        ("Answer: 12", 0.0),
    ],
)
def test_f1_of_drop(answer, f1, make_folder):
    """As the authors' program counts: words of the best of the annotators' answers, numbers must agree."""
    (benchmark,) = find(["drop"])
    (row,) = benchmark.rows(make_folder("drop"))
    assert benchmark.score(row, answer) == pytest.approx(f1, abs=0.005)


def test_what_moves_a_score_is_in_its_settings():
    settings = {b.name: b.settings() for b in find(["mmlu", "gsm8k", "aime25"])}
    assert settings["mmlu"] == {"shots": 5, "chat": False, "metric": "accuracy"}
    assert settings["gsm8k"]["max_new_tokens"] == 1024 and "temperature" not in settings["gsm8k"]
    assert settings["aime25"]["samples"] == 16 and settings["aime25"]["temperature"] == 0.6


def test_names():
    assert [b.name for b in find(["mmlu", "gsm8k", "mmlu"])] == ["mmlu", "gsm8k"]
    with pytest.raises(UserError, match="did you mean gsm8k?"):
        find(["gsm9k"])
    with pytest.raises(UserError, match="names no benchmark"):
        find([])


def test_a_part_is_spread_evenly():
    rows = [Row(str(i), {}) for i in range(10)]
    assert [r.where for r in spread(rows, 4)] == ["0", "2", "5", "7"] and spread(rows, 4) == spread(rows, 4)
    assert spread(rows, None) == spread(rows, 10) == spread(rows, 99) == rows
