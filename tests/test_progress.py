"""What a meter says, and a tail that reads what others write: whole lines only."""

import json

from npd_ascend import progress
from npd_ascend.progress import Meter, ProgressTail, message


def test_what_a_meter_says(monkeypatch):
    events: list[dict] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    with Meter("annotate teacher", total=3) as meter:
        for _ in range(3):
            meter.advance(1, tokens=10, loss=0.5)
        meter.idle = 100.0  # longer than it has taken: nothing was done in that time
    message("all good")
    assert [e["event"] for e in events if e["event"] != "progress"] == ["begin", "end", "message"]
    assert events[-2]["done"] == 3 and events[-2]["tokens"] == 30 and events[-2]["seconds"] == 0.0


def test_tail_gives_each_event_once_and_waits_for_whole_lines(tmp_path):
    path = tmp_path / "p.jsonl"
    tail = ProgressTail(path)
    assert tail.poll() == []
    line = json.dumps({"event": "progress", "stage": "änn"}).encode() + b"\n"
    path.write_bytes(line + line[:20])
    assert [e["stage"] for e in tail.poll()] == ["änn"]
    assert tail.poll() == []
    with open(path, "ab") as f:
        f.write(line[20:] + b"not json\n[1]\n" + line)
    assert len(tail.poll()) == 2


def test_tail_survives_any_split(tmp_path):
    path = tmp_path / "p.jsonl"
    data = b"".join(json.dumps({"event": "progress", "done": i}).encode() + b"\n" for i in range(5))
    tail, got = ProgressTail(path), []
    with open(path, "wb", buffering=0) as f:
        for i in range(0, len(data), 7):
            f.write(data[i : i + 7])
            got += [e["done"] for e in tail.poll()]
    assert got == list(range(5))


def test_tail_starts_anew_when_the_file_does(tmp_path):
    path = tmp_path / "p.jsonl"
    tail = ProgressTail(path)
    path.write_text("".join(json.dumps({"event": "progress", "done": i}) + "\n" for i in range(3)))
    assert len(tail.poll()) == 3
    path.write_text(json.dumps({"event": "progress", "done": 9}) + "\n")
    assert [e["done"] for e in tail.poll()] == [9]
