"""Shells ask npd for completions; every command explains itself."""

import os
import subprocess
import sys

import pytest

from npd_ascend.config.stages import groups, stage_names

CODE = "import sys; sys.argv[0] = 'npd'; from npd_ascend.cli import main; main()"


def npd(*arguments, **env):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        text=True,
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "400", **env},
    )
    return done.returncode, done.stdout, done.stderr


def completed(shell, line):
    words = line.split(" ")
    return npd(
        _NPD_COMPLETE=f"complete_{shell}", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1), _TYPER_COMPLETE_ARGS=line
    )[1]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_commands_stages_and_settings_are_completed(shell):
    assert "evaluate" in completed(shell, "npd ev") and "train" not in completed(shell, "npd ev")
    assert [s for s in stage_names() if s in completed(shell, "npd run --stage annotate_")] == [
        "annotate",
        "annotate_teacher",
        "annotate_student",
    ]
    said = completed(shell, "npd run --set sync.")
    assert "sync.refreshes=" in said and "train.lr=" not in said


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_for_a_shell_is_printed(shell):
    code, out, _ = npd("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert code == 0 and f"_NPD_COMPLETE=complete_{shell}" in out


@pytest.mark.parametrize(
    "command", [None, "run", "plan", "doctor", "study", "report", "evaluate", "convert", "join", *groups()]
)
def test_every_command_explains_itself(command):
    code, out, _ = npd(*filter(None, [command]), "-h")
    assert code == 0 and "Usage: npd" in out


def test_stage_lists_its_values_in_help_and_error():
    assert all(name in " ".join(npd("run", "-h")[1].split()) for name in stage_names())
    code, _, err = npd("run", "nowhere.yaml", "--stage", "trian", "--dry-run")
    assert code == 2 and err == (f"error: --stage trian: there is no such stage; known: {', '.join(stage_names())}\n")


def test_version():
    from npd_ascend import __version__

    assert npd("--version") == (0, f"{__version__}\n", "")
