import numpy as np
import pytest

from npd_ascend.report.numbers import duration, number, percent, size
from npd_ascend.report.samples import gallery, pick, pieces


def test_pieces_keep_spaces_and_join_what_makes_one_character():
    # Byte-level tokens, the first of a word without its space when decoded alone.
    table = [b" a", b"b", "迷".encode()[:2], "迷".encode()[2:], b" c", b"\xff"]

    def decode(ids):
        return b"".join(table[i] for i in ids).decode(errors="replace").lstrip(" ")

    assert pieces([0, 1, 2, 3, 4], decode) == [("a", 1), ("b", 1), ("迷", 2), (" c", 1)]
    assert sum(n for _, n in pieces([5] * 9, decode)) == 9
    assert pieces([], decode) == []


def test_pick_shows_every_zone_at_its_extreme():
    zone = np.array(["proximal"] * 10 + ["degenerate"] * 3 + ["disconnect"] * 2 + ["undefined"])
    delta = np.concatenate([np.linspace(0, 0.7, 10), [-0.1, -0.9, -0.2], [0.9, 1.4], [np.nan]])
    chosen = pick(zone, delta, 6)
    assert chosen[:4] == [0, 3, 6, 9] and chosen[4:] == [14, 11]
    assert len(set(pick(zone, delta, 100))) == 16
    assert pick(zone, delta, 1) == [0]
    assert len(pick(np.array(["undefined"] * 5), np.full(5, np.nan), 3)) == 3


def test_gallery_reads_tokens_with_their_annotation(make_run):
    facts = make_run()
    problems = []
    shown = gallery(facts.run, facts.config, 6, problems)
    assert not problems and shown.generation == 1 and shown.decoded and len(shown.samples) == 6
    assert {s.zone for s in shown.samples} == {"proximal", "degenerate", "disconnect"}
    g = facts.generations[1]
    for s in shown.samples:
        at = int(np.flatnonzero(np.isclose(g.delta, s.delta))[0])
        assert s.length == g.lengths[at] == len(s.tokens) and s.finish == g.finish[at]
        assert all(0 <= t.heat <= 1 and t.entropy >= 0 and 0 < t.probability <= 1 for t in s.tokens)
        assert s.prompt.startswith(f"From cell {at} to cell")


def test_gallery_shows_ids_where_no_tokenizer_loads(make_run):
    facts = make_run(generations=1)
    (facts.root / "inputs/student/tokenizer.json").write_text("{}")
    problems = []
    shown = gallery(facts.run, facts.config, 2, problems)
    assert not shown.decoded and problems[0].startswith("samples are shown as token ids")
    assert shown.samples[0].tokens[0].text.strip().isdigit()


def test_gallery_is_none_without_rollouts(make_run):
    facts = make_run(generations=0)
    assert gallery(facts.run, facts.config, 3, []) is None


@pytest.mark.parametrize("value, text", [
    (0, "0"), (12345.6, "12,346"), (40.123, "40.1"), (0.00312, "0.00312"), (3e-7, "3.00e-07"), (None, "–"),
    (float("nan"), "–"), (999.9, "999.9"[:0] + "1000"), (-0.5, "-0.500"), (7, "7")])  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_units():
    assert [percent(0.962), percent(None), percent(1 / 3, 2)] == ["96.2 %", "–", "33.33 %"]
    assert [duration(0.31), duration(59.94), duration(65), duration(7385)] == [
        "0.31 s",
        "59.9 s",
        "1:05 min",
        "2:03:05 h",
    ]
    assert [size(0), size(999), size(588_123), size(1.44e10), size(3e15)] == [
        "0 B",
        "999 B",
        "588 kB",
        "14.4 GB",
        "3,000 TB",
    ]
