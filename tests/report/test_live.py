import io
import re

import pytest

from npd_ascend.report.live import LiveView, StageState


def event(kind="progress", stage="rollout", **fields):
    base = dict(event=kind, stage=stage, done=0, skipped=0, total=100, unit="samples", tokens=0, seconds=0.0, notes={})
    return {**base, **fields}


def shown(*events, terminal=False, **kwargs):
    out = io.StringIO()
    view = LiveView(file=out, terminal=terminal, **kwargs)
    view.start()
    for e in events:
        view.handle(e)
    view.stop()
    return out.getvalue()


def test_rate_leaves_out_earlier_runs_and_forgets_warm_up():
    state = StageState("train")
    state.update(event("begin", done=50, skipped=50, total=250))
    state.update(event(done=52, skipped=50, total=250, tokens=20, seconds=100.0))
    for s in range(101, 141):
        state.update(
            event(done=52 + (s - 100) * 2, skipped=50, total=250, tokens=20 + (s - 100) * 20, seconds=float(s))
        )
    assert state.rates() == pytest.approx((2.0, 20.0))
    assert state.rates(whole=True)[0] == pytest.approx(82 / 140)
    assert state.eta() == pytest.approx((250 - 132) / 2)


def test_eta_is_unknown_without_total_or_movement():
    state = StageState("x")
    state.update(event("begin"))
    assert state.eta() is None and state.speed() == ""
    state.update(event(total=None, done=5, seconds=1.0))
    assert state.eta() is None and state.count() == "5 samples"


def test_plain_lines_are_timed_and_sparse():
    steps = [event(done=i, tokens=10 * i, seconds=i / 10) for i in range(1, 50)]
    end = event("end", done=100, tokens=1000, seconds=10.0, notes={"loss": 0.25})
    text = shown(event("begin"), *steps, end)
    lines = text.splitlines()
    assert len(lines) == 2 and all(re.match(r"\d\d:\d\d:\d\d  rollout: ", line) for line in lines)
    assert lines[0].endswith("begins, 0/100 samples")
    assert lines[1].endswith("done, 100/100 samples in 10 s, 10 samples/s, 100 tokens/s, loss 0.25")


def test_plain_progress_line_says_rate_and_time_to_go():
    notes = {"lag": 0.04, "loss": float("nan")}
    text = shown(event("begin"), event(done=20, tokens=2000, seconds=10.0, notes=notes), every=0.0)
    assert text.splitlines()[1][10:] == (
        "rollout: 20/100 samples (20 %), 2 samples/s, 200 tokens/s, 40 s to go, lag 0.04, loss nan"
    )


def test_messages_and_errors_are_lines_of_their_own_and_cannot_steer_the_terminal():
    text = shown(
        {"event": "message", "text": "keep rate 40 %", "level": "warning"},
        {"event": "message", "text": "\x1b[2Jhello\nworld"},
        {"event": "error", "stage": "train", "text": "loss is NaN"},
        {"event": "future"},
    )
    lines = [line[10:] for line in text.splitlines()]
    assert lines == ["warning: keep rate 40 %", "␛[2Jhello world", "error in train: loss is NaN"]


def test_terminal_shows_a_bar_for_each_active_stage(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    out = io.StringIO()
    view = LiveView(file=out, terminal=True)
    view.start()
    view.handle(event("begin", "train", unit="steps", total=40))
    view.handle(event("begin", "rollout 1", total=512))
    view.handle(event(stage="train", unit="steps", total=40, done=10, tokens=5000, seconds=5.0, notes={"loss": 0.7}))
    view.handle(event(stage="rollout 1", total=512, done=64, tokens=640, seconds=2.0))
    assert view._progress is not None
    view._progress.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "10/40 steps" in plain and "2 steps/s, 1,000 tokens/s" in plain and "loss 0.7" in plain
    assert "64/512 samples" in plain and "[bold]" not in plain
    view.handle(event("end", "train", unit="steps", total=40, done=40, tokens=20000, seconds=20.0))
    assert list(view.stages) == ["rollout 1"]
    view.handle({"event": "error", "stage": "rollout 1", "text": "[red]died[/red]"})
    assert not view.stages
    view.stop()
    view.stop()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "train: done, 40/40 steps in 20 s" in plain and "error in rollout 1: [red]died[/red]" in plain


@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_notes_cannot_steer_the_terminal(monkeypatch, terminal):
    monkeypatch.setenv("COLUMNS", "200")
    out = io.StringIO()
    with LiveView(file=out, terminal=terminal, every=0.0) as view:
        for kind in ("begin", "progress", "end"):
            view.handle(event(kind, "ro\x1b]0;x\x07llout\u202e", unit="sam\x9bples", notes={"loss\x00": "\x1b[2J"}))
            if view._progress is not None:
                view._progress.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert not re.search("[\x00\x07\x1b\x9b\u202e]", text) and "[2J" in text and "\x1b[2J" not in out.getvalue()
