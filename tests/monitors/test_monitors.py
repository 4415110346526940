"""Curves arrive once, while the run goes on and after it was resumed; no monitor can stop a run."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from npd_ascend.errors import UserError
from npd_ascend.monitors import feed as feeds
from npd_ascend.monitors.feed import Feed, Sent, point
from npd_ascend.monitors.registry import MONITORS
from npd_ascend.store.metrics import MetricsWriter, read_metrics

OPENED: list[SimpleNamespace] = []


def keep(subject, project):
    """A monitor of one's own, as ``module:function`` names it."""
    log = SimpleNamespace(subject=subject, project=project, points=[], closed=False)
    log.log, log.close = log.points.extend, lambda: setattr(log, "closed", True)
    OPENED.append(log)
    return log


def refuse(subject, project):
    raise ConnectionError("no\nserver")


def hang(subject, project):
    threading.Event().wait(20)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    OPENED.clear()
    monkeypatch.setattr(feeds, "_EVERY_S", 0.02)


def steps(writer, first, last, generation=0, **more):
    for step in range(first, last + 1):
        writer.log(
            "train",
            step=step,
            progress=step / 10,
            generation=generation,
            loss=1 / step,
            ce=0.5,
            lr=1e-3,
            grad_norm=1.0,
            tokens=100,
            seconds=0.5,
            **more,
        )


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def followed(run, name, fresh=False):
    feed = Feed(name, run, {"train": {"lr": 1e-3}}, fresh)
    feed.start()
    return feed


def test_rows_become_points_with_all_terms():
    row = {
        "kind": "train",
        "step": 3,
        "time": 5.0,
        "loss": 2.0,
        "ce": 1.0,
        "term_rank:2": 4.0,
        "tokens": 50,
        "seconds": 2.0,
        "generation": 1,
    }
    assert point(row).values == {"loss/total": 2.0, "loss/ce": 1.0, "loss/rank:2": 4.0, "train/tokens_per_second": 25.0}
    assert point({"kind": "lag", "step": 3, "forward": 0.1}).values == {"lag/forward": 0.1}
    assert point({"kind": "evaluate", "step": 3, "accuracy": 0.7, "name": "end"}).values == {"accuracy": 0.7}
    assert point({"kind": "stage", "stage": "train", "seconds": 3.0}) is None
    assert point({"kind": "train", "loss": 2.0}) is None


def test_a_curve_arrives_while_the_run_goes_on_and_once_after_it_is_resumed(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    feed = followed(tmp_path, f"{__name__}:keep:mine")
    steps(writer, 1, 4)
    until(lambda: OPENED and len(OPENED[0].points) == 4)  # the feed is still at work
    writer.log("lag", step=4, generation=0, forward=0.1, reverse=0.1)
    writer.log("evaluate", step=4, name="start", generation=1, accuracy=0.5)
    feed.stop()
    assert OPENED[0].closed and OPENED[0].project == "mine"
    # As after a kill: training goes back to its checkpoint at step 2 and does steps 3 and 4 again.
    writer.drop(lambda r: r["kind"] in ("train", "lag") and r["step"] > 2)
    steps(writer, 3, 6)
    writer.log("lag", step=4, generation=0, forward=0.1, reverse=0.1)
    writer.log("lag", step=4, generation=1, forward=0.0, reverse=0.0)  # of the next generation: another point
    followed(tmp_path, f"{__name__}:keep:mine").stop()
    first, second = OPENED
    assert first.subject.id == second.subject.id and second.subject.config == {"train": {"lr": 1e-3}}
    assert [p.step for p in [*first.points, *second.points] if "loss/total" in p.values] == [1, 2, 3, 4, 5, 6]
    assert [
        (p.step, p.values["lag/forward"]) for p in [*first.points, *second.points] if "lag/forward" in p.values
    ] == [(4, 0.1), (4, 0.0)]
    assert sum("accuracy" in p.values for p in [*first.points, *second.points]) == 1


def test_a_redone_run_is_another_one(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    steps(writer, 1, 3)
    followed(tmp_path, f"{__name__}:keep").stop()
    followed(tmp_path, f"{__name__}:keep", fresh=True).stop()
    a, b = OPENED
    assert a.subject.id != b.subject.id and b.subject.name.endswith("-1")
    assert len(a.points) == len(b.points) == 3


def test_what_is_handed_on_is_noted_before(tmp_path):
    sent = Sent(tmp_path / "sent.json")
    steps(MetricsWriter(tmp_path / "m"), 1, 3)
    assert [p.step for p in sent.new(read_metrics(tmp_path / "m"))] == [1, 2, 3]
    sent.save()
    again = Sent(tmp_path / "sent.json")
    assert list(again.new(read_metrics(tmp_path / "m"))) == []
    (tmp_path / "sent.json").write_text("{torn")
    assert len(list(Sent(tmp_path / "sent.json").new(read_metrics(tmp_path / "m")))) == 3


def test_a_monitor_that_fails_is_one_warning_line(tmp_path, capfd):
    steps(MetricsWriter(tmp_path / "metrics.jsonl"), 1, 2)
    followed(tmp_path, f"{__name__}:refuse").stop()
    assert capfd.readouterr().err == f"monitor {__name__}:refuse fails and is left out: ConnectionError: no server\n"


def test_a_monitor_that_hangs_is_left_alone(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(feeds, "_CLOSE_S", 0.2)
    begin = time.monotonic()
    followed(tmp_path, f"{__name__}:hang").stop()
    assert time.monotonic() - begin < 5 and "does not end" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tensorbord", "nowhere.at.all:open"])
def test_unknown_names_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="report.monitors"):
        Feed(name, tmp_path, {})


def test_names_are_known_without_their_packages():
    assert MONITORS.names() == ["swanlab", "tensorboard", "wandb"]
    code = (
        "import sys; from npd_ascend.monitors.registry import MONITORS; MONITORS.all(); "
        "print([m for m in ('wandb', 'swanlab', 'tensorboard') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True).stdout.strip() == "[]"


def twice(run, name):
    """A run with its curve, stopped after step 4 and resumed at step 2."""
    writer = MetricsWriter(run / "metrics.jsonl")
    steps(writer, 1, 4, term_rank=0.25)
    writer.log("evaluate", step=0, name="start", generation=0, accuracy=0.5)
    followed(run, name).stop()
    writer.drop(lambda r: r["kind"] == "train" and r["step"] > 2)
    steps(writer, 3, 6, term_rank=0.25)
    followed(run, name).stop()


def test_tensorboard_reads_it_back(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    twice(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "monitors" / "tensorboard").glob("events-*")
    found = EventAccumulator(str(folder)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss/total")] == [(s, pytest.approx(1 / s)) for s in range(1, 7)]
    assert [e.value for e in found.Scalars("loss/rank")] == [0.25] * 6
    assert [(e.step, e.value) for e in found.Scalars("accuracy")] == [(0, 0.5)]
    assert "warning" not in capfd.readouterr().err


def records(data: bytes, block: int = 1 << 15):
    """Records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def test_wandb_keeps_it_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    twice(tmp_path, "wandb:maze")
    assert "left out" not in "".join(capfd.readouterr())

    def stored():
        files = sorted((tmp_path / "monitors").glob("wandb-maze/wandb/offline-run-*/*.wandb"))
        return [wandb_internal_pb2.Record.FromString(r) for f in files for r in records(f.read_bytes())]

    until(lambda: sum(r.HasField("exit") for r in stored()) == 2)  # its writer is a process of its own
    runs = {(r.run.run_id, r.run.project) for r in stored() if r.HasField("run")}
    assert len(runs) == 1 and runs.pop()[1] == "maze"
    rows = [
        {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
        for r in stored()
        if r.HasField("history")
    ]
    assert [(r["step"], r["loss/total"]) for r in rows if "loss/total" in r] == [
        (s, pytest.approx(1 / s)) for s in range(1, 7)
    ]
    assert [(r["step"], r["accuracy"]) for r in rows if "accuracy" in r] == [(0, 0.5)]


def test_swanlab_keeps_it_offline(tmp_path, monkeypatch, capfd):
    pytest.importorskip("swanlab")
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    monkeypatch.setenv("SWANLAB_MODE", "offline")
    twice(tmp_path, "swanlab")
    assert "left out" not in "".join(capfd.readouterr())
    points, files = [], sorted((tmp_path / "monitors" / "swanlab").glob("run-*/*.swanlab"))
    for file in files:
        reader = DataStoreReader()
        reader.open(file)
        while (data := reader.scan()) is not None:
            record = Record.FromString(data)
            if record.HasField("scalar"):
                points.append((record.scalar.key, record.scalar.step, record.scalar.value.number))
    assert len(files) == 2 and len({f.name for f in files}) == 1
    assert [(s, v) for k, s, v in points if k == "loss/total"] == [(s, pytest.approx(1 / s)) for s in range(1, 7)]
    assert [v for k, _, v in points if k == "loss/rank"] == [0.25] * 6
    assert [(s, v) for k, s, v in points if k == "accuracy"] == [(0, 0.5)]
