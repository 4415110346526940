"""The page: complete, escaped, self-contained, in accord with its inputs, and there whatever is missing."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npd_ascend.errors import UserError
from npd_ascend.report.build import build, render
from npd_ascend.report.collect import collect
from npd_ascend.report.generation import shared
from npd_ascend.report.numbers import percent
from npd_ascend.report.warnings import rise_of_truncated, warnings_of
from npd_ascend.store.dataset import Dataset

SECTIONS = ["headline", "accuracy", "training", "selection", "data", "time", "samples", "settings"]
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements, their text by section, and whether tags are balanced."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.open, self.section, self.text = [], [], [], None, {}
        self.attributes = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.attributes += attrs.items()
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "section":
            self.section = attrs.get("id")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + " " + " ".join(data.split())


def page_of(facts):
    html = build(facts.root).read_text()
    return html, Page(html)


def cells(html, section):
    """Rows of the tables of a section, as text."""
    part = re.search(rf'<section[^>]*id="{section}".*?</section>', html, re.S).group()
    part = re.sub(r"<svg.*?</svg>", "", part, flags=re.S)
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", part, re.S)
    return [
        [" ".join(re.sub(r"<[^>]+>", " ", c).split()) for c in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", r, re.S)]
        for r in rows
    ]


def test_all_sections_and_figures_are_there(make_run):
    html, page = page_of(make_run())
    assert [s for s in SECTIONS if s in page.ids] == SECTIONS
    assert page.tags.count("svg") == 10  # lag and timeline are there for wide and for narrow pages
    assert "Resolved configuration" in page.text["settings"] and "kd_weight: 0.9" in page.text["settings"]
    assert len(page.ids) == len(set(page.ids))


def test_page_refers_to_nothing_outside_and_runs_nothing(make_run):
    html, page = page_of(make_run())
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value.startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert len(html) < 400_000


def test_what_models_and_people_wrote_is_escaped(make_run):
    html, page = page_of(make_run())
    assert "<script" not in html and "<b>bold" not in html
    assert "&lt;script&gt;" in html and "<script>alert('x')</script>" in page.text["samples"]
    assert "<script>alert('x')</script>" in page.text["accuracy"]


def test_hostile_settings_and_states_are_escaped(make_run):
    facts = make_run()
    hostile = "</pre><script>alert(1)</script>"
    facts.run.config.write_text(facts.run.config.read_text() + f"# {hostile}\n")
    facts.run.write_state(status="failed", error=hostile, note={"a": hostile})
    facts.run.metrics.write_text(
        facts.run.metrics.read_text()
        + json.dumps({"kind": "stage", "stage": hostile, "seconds": 1.0, "time": 1.79e9, "generation": 0})
        + "\n"
    )
    html, page = page_of(facts)
    assert "<script" not in html
    assert hostile in page.text["settings"] and hostile in page.text["warnings"] and hostile in page.text["time"]


def test_figures_shown_are_those_of_the_inputs(make_run):
    facts = make_run()
    html, page = page_of(facts)
    assert "52.0 → 65.0 %" in page.text["headline"] and "+13.0 points" in page.text["headline"]
    rows = cells(html, "accuracy")
    assert rows[1][:4] == ["start", "0", "208 / 400", "52.0 %"] and rows[2][:2] == ["refresh 1", "2"]
    assert rows[3][0] == "end" and rows[3][5] == percent(7 / 400)
    by_generation = [r for r in cells(html, "selection") if r[0] in "01"]
    for g, row in zip(facts.generations, by_generation, strict=True):
        n = len(g.zone)
        assert row[2:5] == [str(n), str(g.kept.sum()), percent(g.kept.mean(), 2)]
        assert row[5:9] == [
            percent((g.zone == z).mean(), 2) for z in ("proximal", "degenerate", "disconnect", "undefined")
        ]
        assert f"degenerate {(g.zone == 'degenerate').sum()}" in row[9]
    assert ["paper, early", "delta_ifd", "", "", "96.20 %", "96.20 %", "2.60 %", "1.20 %", "", ""] in cells(
        html, "selection"
    )


def test_data_figures_are_those_of_the_inputs(make_run):
    facts = make_run()
    rows = cells(page_of(facts)[0], "data")
    rollouts, stored, packed = rows[1:3], rows[4:6], rows[7:9]
    for i, g in enumerate(facts.generations):
        assert rollouts[i][:5] == [str(i), "400", f"{g.lengths.mean():.1f}", "120", percent((g.lengths >= 120).mean())]
        tokens = int(g.lengths.sum())
        assert stored[i][1] == f"{tokens:,}" and stored[i][3] == f"{g.topk_bytes / tokens:.1f}"
        assert stored[i][4] == percent(g.mass / tokens, 2)
        density = g.pack_tokens / (g.pack_rows * 512)
        assert packed[i][2] == str(g.pack_rows) and packed[i][6:8] == [percent(density, 2), percent(1 - density, 2)]


def answers(facts, generation, responses, prompts, finish="stop"):
    """Replaces the rollouts of a generation by these answers to these prompts (token ids)."""
    n, column = len(responses), pa.list_(pa.int32())
    data = Dataset(facts.run.prompts, "prompts", "mine")
    data.write_table(
        0,
        pa.table(
            {
                "prompt_index": range(n),
                "prompt_id": range(n),
                "prompt_ids": pa.array(prompts, column),
                "reference_ids": pa.nulls(n, column),
                "label_ids": pa.nulls(n, column),
                "answer": ["x"] * n,
                "text": ["x"] * n,
            }
        ),
    )
    data.finish(1)
    rollouts = Dataset(facts.run.generation(generation).rollouts, "rollouts", f"mine{generation}")
    rollouts.write_table(
        0,
        pa.table(
            {
                "sample_id": range(n),
                "prompt_index": range(n),
                "path": pa.array([0] * n, pa.int8()),
                "response_ids": pa.array(responses, column),
                "logprobs": pa.nulls(n, pa.list_(pa.float32())),
                "label_ids": pa.nulls(n, column),
                "finish_reason": [finish] * n,
            }
        ),
    )
    rollouts.finish(1, truncated=n * (finish == "length"))


def test_truncated_looping_and_identical_answers(make_run):
    facts = make_run()
    loop = [9, 8, *[4, 5, 6] * 20, 3]
    # The first two prompts are the same, so their equal answers are no news; those of the third and fourth are.
    answers(facts, 0, [[7, 1], [7, 1], loop, loop, [7, 2], [], []], [[1], [1], [2], [3], [4], [5], [6]])
    answers(facts, 1, [[7, i] for i in range(7)], [[1], [1], [2], [3], [4], [5], [6]], finish="length")
    run = collect(facts.root)
    first, second = (g.rollouts for g in run.generations)
    assert (first.truncated, first.loops, first.identical) == pytest.approx((0, 2 / 7, 2 / 7))
    assert (second.truncated, second.loops, second.identical) == (1, 0, 0)
    rows = cells(render(run), "data")
    assert rows[1][4:] == ["0.0 %", "28.6 %", "28.6 %"] and rows[2][4:] == ["100.0 %", "0.0 %", "0.0 %"]
    assert any(
        "100.0 % of the answers ran into rollout.max_new_tokens, against 0.0 % a generation earlier" in w
        for w in warnings_of(run)
    )


def test_a_rise_of_truncated_answers_of_up_to_ten_points_is_no_warning():
    assert rise_of_truncated(1, 0.05, 0.15) is None and rise_of_truncated(1, 0.9, 0.1) is None
    assert "Generation 3: 16.0 %" in rise_of_truncated(3, 0.05, 0.16)


@pytest.mark.parametrize("seed", range(20))
def test_shared_counts_like_a_naive_loop(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    said, asked = rng.integers(-3, 4, n) << 61, rng.integers(0, 4, n)
    naive = sum(
        any(s == t and a != b for t, b in zip(said, asked, strict=True)) for s, a in zip(said, asked, strict=True)
    )
    assert shared(said, asked) == naive


def test_time_table_has_shares_beside_the_papers(make_run):
    rows = {r[0]: r for r in cells(page_of(make_run())[0], "time")}
    # 2 generations: rollout 38 + 21 s of which 40 busy, of 59 + 28 + 18 + 0.8 + 0.6 + 120 s.
    assert rows["Rollout"] == [
        "Rollout",
        "59.0 s",
        "19.0 s",
        "–",
        percent(59 / 226.4, 2),
        "82.01 %",
        "36,000",
        "900",
        "20",
    ]
    assert rows["Training"][2:6] == ["12.0 s", "8.0 s", percent(120 / 226.4, 2), "11.48 %"]
    assert rows["Filtering"][5] == "0.01 %" and rows["Packing"][5] == "0.21 %"
    assert rows["Evaluate"][3:5] == ["–", "–"]


def test_low_keep_rate_is_a_warning_and_a_good_run_has_none_of_it(make_run):
    facts = make_run(keep=0.5)
    html, page = page_of(facts)
    assert re.search(r"Generations 0, 1: only (4|5)\d\.\d % of the samples are kept", page.text["warnings"])
    shutil.rmtree(facts.root)
    assert "are kept" not in page_of(make_run(keep=0.97))[1].text.get("warnings", "")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"loss": float("nan")}, "not a finite number in 1 of 121 steps"),
        ({"kind": "lag", "forward": 0.31, "reverse": 0.2}, "lag reached 0.310 nats, above 0.1"),
    ],
)
def test_trouble_in_training_is_a_warning(make_run, change, said):
    facts = make_run()
    row = {"kind": "train", "step": 121, "progress": 4.0, "generation": 1, "time": 1.79e9, **change}
    facts.run.metrics.write_text(facts.run.metrics.read_text() + json.dumps(row) + "\n")
    assert said in page_of(facts)[1].text["warnings"]


@pytest.mark.parametrize(
    "parts",
    [
        "config.yaml",
        "run.json",
        "metrics.jsonl prompts",
        "inputs",
        "evaluations",
        "generations",
        "generations/000/rollouts generations/001/scores_teacher",
        "generations/001/rollouts generations/000/topk",
        "generations/001/topk generations/000/selection",
        "generations/001/selection generations/000/packs",
    ],
)
def test_any_part_may_be_missing(make_run, parts):
    facts = make_run()
    for part in parts.split():
        path = facts.root / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, page = page_of(facts)
    assert "settings" in page.ids


def test_damage_is_named_not_raised(make_run):
    facts = make_run()
    parts = ["rollouts", "scores_teacher", "topk", "selection", "packs"]
    for part in parts:
        for path in (facts.root / "generations/001" / part).glob("shard-00000.*"):
            if path.suffix != ".json":
                data = bytearray(path.read_bytes())
                data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
                path.write_bytes(data)
        (facts.root / "generations/000" / part / "manifest.json").write_text("{broken")
    _, page = page_of(facts)
    for part in parts:
        assert f"000/{part}" in page.text["warnings"]
    for part in ["rollouts", "scores_teacher", "selection"]:  # figures of topk and packs stand in their manifests
        assert f"001/{part}: shard 0 is damaged" in page.text["warnings"]


def test_broken_evaluation_and_config_are_named(make_run):
    facts = make_run()
    (facts.run.evaluations / "end.json").write_text('{"name": "end"}')
    (facts.run.evaluations / "x.json").write_text("[1]")
    facts.run.config.write_text("train: {lrr: 1}")
    _, page = page_of(facts)
    assert "evaluations/end.json" in page.text["warnings"] and "evaluations/x.json" in page.text["warnings"]
    assert "did you mean train.lr" in page.text["warnings"]


def test_a_run_that_only_just_began(make_run):
    facts = make_run(generations=0, finished=False)
    facts.run.metrics.unlink()
    html, page = page_of(facts)
    assert "not finished (running)" in page.text["warnings"]
    assert "52.0 %" in page.text["headline"] and "training" not in page.ids


def test_no_run_is_a_clear_line(tmp_path):
    with pytest.raises(UserError, match="no run there"):
        build(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_report_goes_where_it_is_told(make_run, tmp_path):
    facts = make_run(generations=1)
    out = tmp_path / "sub" / "r.html"
    assert build(facts.root, out) == out and out.read_text().startswith("<!doctype html>")
    assert not facts.run.report.exists()


def test_overlapping_stages_count_once_in_the_total(make_run):
    facts = make_run(generations=0)
    rows = [
        {"kind": "stage", "stage": "train", "time": 100.0, "seconds": 60.0},
        {"kind": "stage", "stage": "rollout", "time": 90.0, "seconds": 20.0},
        {"kind": "stage", "stage": "pack", "time": 210.0, "seconds": 5.0},
    ]
    facts.run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert collect(facts.root).wall_seconds() == pytest.approx(65.0)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just("<script>"),
)
keys = st.sampled_from(
    [
        "step",
        "progress",
        "generation",
        "seconds",
        "busy",
        "tokens",
        "samples",
        "time",
        "loss",
        "ce",
        "kd",
        "lr",
        "grad_norm",
        "forward",
        "reverse",
        "stage",
    ]
)
rows_of_metrics = st.lists(
    st.builds(
        lambda kind, row: {"kind": kind, **row},
        st.sampled_from(["train", "lag", "refresh", "stage"]),
        st.dictionaries(keys, anything, max_size=8),
    ),
    max_size=6,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_metrics)
def test_metrics_of_any_shape_make_a_page(tmp_path, rows):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"kind": "tra')
    html = build(tmp_path).read_text()
    Page(html)
    assert "<script" not in html


def test_control_characters_of_texts_and_names_are_shown_not_sent(make_run, monkeypatch):
    from npd_ascend.report import build as room
    from npd_ascend.report.samples import Gallery, Sample, Token

    hostile = "x\x1b[31m\x00\u202eevil\u2066 <b>"
    sample = Sample(hostile, hostile, [Token(hostile, 1.0, 0.5, 0.1)], 0, 1, 0, hostile, hostile, hostile, 0.1)
    monkeypatch.setattr(room, "gallery", lambda *args: Gallery(0, [sample], 1.0, True))
    run = collect(make_run().run.root)
    run.problems.append(hostile)
    run.state["error"] = hostile
    run.config_text = hostile
    page = room.render(run)
    assert not [c for c in "\x1b\x00\u202e\u2066" if c in page]
    assert page.count("x␛[31m␀‹U+202E›evil‹U+2066› &lt;b&gt;") >= 6 and "<svg" in page
