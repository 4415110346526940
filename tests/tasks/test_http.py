"""A judge over HTTP, asked for real."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from npd_ascend.errors import UserError
from npd_ascend.tasks.registry import Attempt
from npd_ascend.tasks.rewards.http import http


class Service(ThreadingHTTPServer):
    """Answers as it is told to: a list of (status, body, seconds), the last one for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.asked = [(200, b'{"reward": 0.5}', 0.0)], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/judge"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, body, seconds = server.plan[0] if len(server.plan) == 1 else server.plan.pop(0)
        time.sleep(seconds)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def service():
    made = Service()
    yield made
    made.shutdown()
    made.server_close()


def ask(service: Service, **options) -> float:
    return http(Attempt("2+2?", "4", "4"), None, url=service.url, wait=0.01, **options)


def test_it_is_asked_and_answers(service):
    assert ask(service) == 0.5
    assert ask(service) == 0.5
    first, second = service.asked
    assert {k: first[k] for k in ("prompt", "response", "answer")} == {"prompt": "2+2?", "response": "4", "answer": "4"}
    assert first["id"] == second["id"] and len(first["id"]) == 64


def test_what_may_be_another_time_is_tried_again(service):
    service.plan = [(503, b"", 0), (429, b"", 0), (200, b'{"reward": 1}', 0)]
    assert ask(service) == 1 and len(service.asked) == 3


def test_one_that_is_slow_is_asked_again(service):
    service.plan = [(200, b'{"reward": 0}', 5), (200, b'{"reward": 1}', 0)]
    assert ask(service, timeout=0.2) == 1


def test_one_that_never_answers(service):
    service.plan = [(500, b"", 0)]
    with pytest.raises(UserError, match=r"does not answer \(HTTP 500, 3 tries\); .*what was judged is kept"):
        ask(service, retries=2)
    assert len(service.asked) == 3
    with pytest.raises(UserError, match="does not answer .*refused"):
        http(Attempt("", "", None), None, url="http://127.0.0.1:9/x", retries=0)


@pytest.mark.parametrize("status", [400, 404, 302])
def test_a_refusal_is_not_tried_again(service, status):
    service.plan = [(status, b"", 0)]
    with pytest.raises(UserError, match=f"refuses with HTTP {status}"):
        ask(service)
    assert len(service.asked) == 1


@pytest.mark.parametrize("body", [b"", b"1", b"{}", b'{"reward": "good"}', b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_none(service, body):
    service.plan = [(200, body, 0)]
    with pytest.raises(UserError, match="expected a JSON object with a number 'reward'"):
        ask(service)


def test_only_http(service):
    with pytest.raises(UserError, match="must begin with http"):
        http(Attempt("", "", None), None, url="file:///etc/passwd")
