"""Bad input on the command line: the same one line, exit code 2, no file made or changed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from npd_ascend import __version__, cli
from npd_ascend.errors import EXIT_USER
from npd_ascend.workers import process


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


COMMANDS: dict[str, tuple[Callable[[Any], list[str]], str]] = {
    "typo": (lambda k: ["run", str(k.file), "--set", "trian.lr=1", "--dry-run"], "did you mean train?"),
    "missing config": (lambda k: ["run", "none.yaml"], "none.yaml"),
    "missing model": (lambda k: ["run", str(k.file), "--set", "models.teacher=none"], "teacher: none is neither"),
    "unknown stage": (lambda k: ["run", str(k.file), "--stage", "distil"], "annotate_teacher"),
    "plan of nothing": (lambda k: ["plan", str(k.file), "--set", "models.teacher=none"], "none: no config.json there"),
    "report of no run": (lambda k: ["report", str(k.root / "none")], "no run there"),
    "convert nothing": (lambda k: ["convert", "none", str(k.root / "out")], "no config.json"),
    "convert to int3": (lambda k: ["convert", str(k.student), str(k.root / "out"), "--dtype", "int3"], "int3"),
    "prune nothing": (lambda k: ["prune", "none", "--layers", "0", "--out", str(k.root / "out")], "no config.json"),
    "prune what is not there": (
        lambda k: ["prune", str(k.student), "--layers", "0,99", "--out", str(k.root / "out")],
        "there is no layer 99",
    ),
    "compare with nothing": (
        lambda k: [
            "decontaminate",
            str(k.file.with_suffix(".jsonl")),
            "--against",
            "none.jsonl",
            "--out",
            str(k.root / "clean.jsonl"),
        ],
        "none.jsonl: no such file",
    ),
    "evaluate nothing": (
        lambda k: ["evaluate", "none", "--config", str(k.file), "--out", str(k.root / "out")],
        "evaluate.prompts",
    ),
    "unknown benchmark": (
        lambda k: ["bench", str(k.student), "--config", str(k.file), "--tasks", "gsm9k", "--data", str(k.root)],
        "did you mean gsm8k?",
    ),
    "benchmark without its rows": (
        lambda k: ["bench", str(k.student), "--config", str(k.file), "--tasks", "gsm8k", "--data", str(k.root)],
        "gsm8k/test.jsonl is missing; it comes from github.com/openai/grade-school-math (licence: MIT)",
    ),
    "table of no scores": (lambda k: ["bench", str(k.root / "none"), "--table", "markdown"], "there are no scores"),
    "run directory taken": (lambda k: ["run", str(k.file), "--set", f"run.dir={k.student}"], "choose another run.dir"),
}


@pytest.fixture(autouse=True)
def sigint():
    """``main`` is for a process of its own: here Ctrl-C stays pytest's."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", COMMANDS)
def test_command(kit, name, monkeypatch, capsys):
    """The command line: the same line on stderr, exit code 2, no file made or changed."""
    command, fragment = COMMANDS[name]
    kit.file.write_text(yaml.safe_dump(kit.tree))
    before = files(kit.root)
    monkeypatch.setattr(sys, "argv", ["npd", *command(kit)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert end.value.code == EXIT_USER
    assert len(said) == 1 and said[0].startswith("error: ") and fragment in said[0], said
    assert files(kit.root) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--version"], f"{__version__}\n"),
        (["version"], f"{__version__}\n"),
        (["-h"], "Near-Policy Distillation"),
        (["run", "-h"], "Runs a configuration"),
        (["evaluate", "-h"], "accuracy"),
    ],
)
def test_version_and_help(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["npd", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr().out
    assert not end.value.code and (out == said if said.endswith("\n") else said in out)


@pytest.mark.parametrize(("content", "code"), [("{", EXIT_USER), ('{"stage": "pack", "job": 3}', EXIT_USER)])
def test_child_process_says_it_too(tmp_path, capsys, content, code):
    (tmp_path / "job.json").write_text(content)
    assert process.main([str(tmp_path / "job.json")]) == code
    assert capsys.readouterr().err.startswith("error: job file")
    assert process.main(["a", "b"]) == EXIT_USER
