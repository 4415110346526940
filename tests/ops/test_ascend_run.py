"""Processes that compile, and how they end."""

import time
from types import SimpleNamespace

import pytest

from npd_ascend.ops.ascend import run
from npd_ascend.ops.ascend.graphs import Graph

CANN = SimpleNamespace(environment=lambda python, rank, size: {"PATH": "/usr/bin:/bin"})


@pytest.fixture
def graph():
    config = {
        "model_type": "qwen2",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    return Graph("annotate teacher", "t", config, 64, False, {}, 2048, {}, 0, 1)


def child(tmp_path, body):
    """An interpreter that does something else; the result's place is its fourth argument."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_one_that_has_a_result_and_does_not_end_is_ended(tmp_path, graph, monkeypatch):
    """MindSpore's end over stand-ins now and then waits for a lock that nobody holds."""
    monkeypatch.setattr(run, "_PATIENCE", 0.3)
    begun, started = [], time.monotonic()
    body = """
        echo '{"begins": "forward"}'
        echo '{"memory": {"forward": 5}, "host": 7}' > "$4"
        exec >&-
        exec sleep 60
    """
    python = child(tmp_path, body)
    found = run.compile_graph(graph, python, CANN, begun.append)
    assert time.monotonic() - started < 30 and begun == ["forward"]
    assert not found.failed and found.memory == 5 and found.host == 7


def test_an_error_is_told_in_its_own_words(tmp_path, graph):
    python = child(tmp_path, "echo 'npd_ascend.errors.UserError: rows are too short' >&2; exit 1")
    found = run.compile_graph(graph, python, CANN)
    assert found.failed == "rows are too short" and found.refused
    found = run.compile_graph(graph, child(tmp_path, "echo 'RuntimeError: no kernel' >&2; exit 1"), CANN)
    assert found.failed == "RuntimeError: no kernel" and not found.refused
