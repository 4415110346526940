"""The reward stage: every answer is judged, once, whatever it says and whatever happens."""

from __future__ import annotations

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from npd_ascend.errors import UserError
from npd_ascend.reward.stage import run
from npd_ascend.tasks import sandbox

PROMPTS = [("2+2?", "4"), ("3+3?", "6"), ("1+1?", "2")]
GIVEN = [["4", "it is 4.", "5"], ["6", "7", "6"], ["", "2", "3"]]


def test_values_and_parts(answers):
    answers.write(PROMPTS, GIVEN, cut=[(0, 2)])
    options = {"weight": 0.5, "options": {"limit": 9, "buffer": 4}}
    run(answers.job(number=1, length=options))
    dataset, value, parts = answers.result()
    right = [1, 1, 0, 1, 0, 1, 0, 1, 0]
    long = [0, -1.0, -1.0] + [0] * 6  # eight letters and the end are nine tokens
    np.testing.assert_allclose(parts, np.transpose([right, long]))
    np.testing.assert_allclose(value, np.array(right) + 0.5 * np.array(long))
    assert dataset.read_all()["sample_id"].to_pylist() == [0, 1, 2, 100, 101, 102, 200, 201, 202]
    assert dataset.extra["parts"] == ["number", "length"] and dataset.extra["weights"] == [1, 0.5]
    assert dataset.extra["mean"] == pytest.approx(value.mean()) and dataset.extra["means"][0] == pytest.approx(5 / 9)
    assert [r["rows"] for r in dataset.manifest["shards"]] == [6, 3]
    assert not list((answers.root / "rewards").glob("*.journal"))


def test_what_is_finished_is_left_alone_and_a_lost_shard_comes_again(answers):
    answers.write(PROMPTS, GIVEN)
    run(answers.job(number=1))
    before = {p.name: p.read_bytes() for p in (answers.root / "rewards").iterdir()}
    run(answers.job(number=1))
    answers.result()[0].discard(1)
    run(answers.job(number=1))
    assert {p.name: p.read_bytes() for p in (answers.root / "rewards").iterdir()} == before


class Service(ThreadingHTTPServer):
    """Judges for real; from the ``broken``-th question on it refuses."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.broken, self.lock = [], 10**9, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            well = len(self.server.asked) < self.server.broken
            self.server.asked += [asked] if well else []
        self.send_response(200 if well else 400)
        self.end_headers()
        self.wfile.write(json.dumps({"reward": len(asked["response"])}).encode())

    def log_message(self, *args):
        pass


def test_nothing_is_judged_twice(answers):
    """Equal answers are one question, and after a refusal the stage goes on behind what it knows."""
    service = Service()
    answers.write(PROMPTS, GIVEN)
    job = answers.job(http={"options": {"url": f"http://127.0.0.1:{service.server_port}/", "retries": 0}})
    service.broken = 3
    with pytest.raises(UserError, match="refuses with HTTP 400"):
        run(job)
    assert len(service.asked) == 3
    service.broken = 10**9
    run(job)
    assert len(service.asked) == 8 == len({q["id"] for q in service.asked})  # 6 was given twice
    assert answers.result()[1].tolist() == [len(text) for texts in GIVEN for text in texts]
    service.shutdown()
    service.server_close()


def test_a_reward_that_raises_is_one_line(answers, tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("def fails(attempt, data):\n    return 1 / len(attempt.response)\n")
    monkeypatch.syspath_prepend(tmp_path)
    answers.write(PROMPTS, GIVEN)
    with pytest.raises(UserError, match="reward fails raised ZeroDivisionError.*prompt '1\\+1.'"):
        run(answers.job(**{"own_rewards:fails": 1}))
    assert not (answers.root / "rewards" / "manifest.json").exists()
    run(answers.job(number=1))  # and nothing stands in the way


def test_unknown_rewards_and_options(answers):
    answers.write(PROMPTS, GIVEN)
    with pytest.raises(UserError, match="there is no reward 'numbr'; did you mean number"):
        run(answers.job(numbr=1))
    with pytest.raises(UserError, match="reward.parts.length: reward length needs the option 'limit'"):
        run(answers.job(length=1))
    with pytest.raises(UserError, match="reward.parts.maze.data .*cannot be read"):
        run(answers.job(maze={"data": "gone.json"}))


def hostile(n):
    """``n`` answers that nobody would want."""
    rng = np.random.default_rng(0)
    kinds = [
        lambda: "\x1b[2J\x1b]0;owned\x07" * 20,
        lambda: "\u202e\u2066" + "\ufffd" * 50,
        lambda: "(" * 2000 + ")" * 2000,
        lambda: "[" * 3000,
        lambda: "{" * 1500 + "}" * 1500,
        lambda: "9" * 4000,
        lambda: "1/" * 2000 + "0",
        lambda: "1" + ",000" * 1000,
        lambda: "\\boxed{" * 500,
        lambda: "\\boxed{9^{9^{9^9}}}",
        lambda: "\\frac{" * 500,
        lambda: "#### " * 1000,
        lambda: "<think>" * 300 + "</think>",
        lambda: "</think><think>" * 200,
        lambda: "\x00" * 100,
        lambda: "a" * 5000,
        lambda: "A " * 2000,
        lambda: "answer is " * 1000,
        lambda: "\r\n" * 2000,
        lambda: '{"a":' * 900,
        lambda: "nan", lambda: "-inf", lambda: "1e999", lambda: "%s%n" * 300, lambda: "../" * 300, lambda: "",
        lambda: rng.bytes(300).decode("latin-1"),
        lambda: rng.bytes(300).decode("utf-8", "replace"),
    ]  # fmt: skip
    return [kinds[i % len(kinds)]() for i in range(n)]


def test_five_hundred_hostile_answers(answers):
    """Each gets its value; the judges are those that work in this process."""
    given = hostile(500)
    prompts = [("a d", "B" if i % 2 else "72") for i in range(50)]
    answers.write(prompts, [given[i * 10 : (i + 1) * 10] for i in range(50)])
    length = {"options": {"limit": 1000, "buffer": 100}}
    (answers.root / "maze.json").write_text(json.dumps({"neighbours": {"a": ["d"], "d": ["a"]}}))
    run(answers.job(exact=1, number=1, choice=1, length=length, maze={"data": answers.root / "maze.json"}))
    dataset, value, parts = answers.result()
    assert len(value) == 500 and np.isfinite(parts).all() and set(parts[:, 0]) == {0}
    assert (parts[:, 3] <= 0).all() and (parts[:, 4] == 0).all()


@pytest.mark.slow
def test_hostile_programs_and_mathematics(answers, boxed_programs):
    """A few through the judges in processes of their own; none stops the stage or outlives its time."""
    programs = [
        "import os\nwhile True: os.fork()",
        "import sys\nwhile True: sys.stdout.write('x' * 65536)",
        "while True: pass",
        "x = [0] * 10**10",
        "open('/etc/passwd').read()",
        "import os\nos.kill(1, 9)\nos.kill(-1, 9)",
        "(" * 50_000,
        "def f(): f()\nf()",
        "def add(a, b): return a + b",
    ]
    tests = json.dumps({"tests": "assert add(1, 2) == 3"})
    answers.write([("p", tests)], [programs])
    run(answers.job(code={"options": {"seconds": 0.7, "memory_mb": 256}}))
    assert answers.result()[1].tolist() == [0] * 8 + [1]


@pytest.fixture(scope="session")
def boxed_programs():
    try:
        sandbox.check()
    except UserError as e:
        pytest.skip(str(e))


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")
def test_mathematics_in_threads(answers):
    answers.write([("?", "\\frac{1}{2}"), ("?", "x+1")], [["\\boxed{0.5}", "\\boxed{2}"], ["\\boxed{1+x}", "1"]])
    run(answers.job(math=1))
    assert answers.result()[1].tolist() == [1, 0, 1, 0]
