"""Ctrl-C at any moment of the command line: one line, exit code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

READY = "import sys, os; from npd_ascend.cli import main; os.write(1, b'.'); main()"
"""As the installed script, which imports ``main`` and calls it; the dot says that it is about to."""


def interrupted(arguments: list[str], delay: float, times: int = 1) -> tuple[int, str]:
    """Exit code and stderr of a command that gets SIGINT ``delay`` seconds after ``main`` was imported."""
    with subprocess.Popen(
        [sys.executable, "-c", READY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.read(1) == "."
        time.sleep(delay)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.fixture
def endless(tmp_path: Path) -> str:
    """A configuration that is still being written by somebody, so that reading it does not end."""
    os.mkfifo(tmp_path / "c.yaml")
    return str(tmp_path / "c.yaml")


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5])
def test_one_line_and_130_from_the_first_moment_on(endless, delay):
    assert interrupted(["run", endless], delay) == (130, "stopped\n")


def test_next_to_nothing_is_imported_before():
    """Until ``main`` is called Ctrl-C is Python's own: nothing of ours can tell it in one line before."""
    script = (
        "import sys; before = {*sys.modules}; from npd_ascend.cli import main; print(*sorted({*sys.modules} - before))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    ours = {m for m in found if m.partition(".")[0] == "npd_ascend"}
    assert ours == {"npd_ascend", "npd_ascend.cli", "npd_ascend.interrupt"}
    assert len(found) < 25 and not {"tempfile", "random", "subprocess", "inspect"} & {*found}


@pytest.mark.parametrize("command", [["doctor"], ["plan"], ["study"], ["run", "--dry-run"]])
def test_every_command(endless, command):
    assert interrupted([*command, endless], 1.0) == (130, "stopped\n")


def test_what_has_begun_is_cleaned_up_once(tmp_path):
    """After ``unwind`` the clean-up of a command runs, and a second Ctrl-C does not cut it short."""
    script = f"""
import os, signal, time
from npd_ascend import commands, interrupt
@commands.app.command("wait")
def wait():
    interrupt.unwind()
    try:
        os.write(1, b".")
        time.sleep(60)
    finally:
        time.sleep(0.5)
        open({str(tmp_path / "clean")!r}, "w").write("yes")
import sys
sys.argv = ["npd", "wait"]
interrupt.end_at_once()
commands.run_command()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.read(1) == "."
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "stopped\n") and (tmp_path / "clean").read_text() == "yes"
