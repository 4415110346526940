"""scripts/rollout_in_container.sh: what reaches ``docker exec`` (docker here writes down its call)."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "rollout_in_container.sh"


@pytest.fixture
def docker(tmp_path):
    (tmp_path / "docker").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\ncat\n')
    (tmp_path / "docker").chmod(0o755)
    return tmp_path


def test_arguments_variables_and_stdin_pass(docker):
    env = {
        "PATH": f"{docker}:{os.environ['PATH']}",
        "ASCEND_RT_VISIBLE_DEVICES": "4,5",
        "VLLM_LOGGING_LEVEL": "a b",
        "NPD_ROLLOUT_CONTAINER": "box",
        "SECRET": "x",
        "BASH_FUNC_f%%": "() { VLLM_X=1\n}",
    }
    got = subprocess.run(
        ["bash", SCRIPT, "-m", "npd_ascend.workers.process"],
        env=env,
        cwd=docker,
        input="command\n",
        capture_output=True,
        text=True,
    )
    lines = got.stdout.splitlines()
    assert got.returncode == 0 and lines[:4] == ["exec", "-i", "-w", str(docker)]
    assert "ASCEND_RT_VISIBLE_DEVICES=4,5" in lines and "VLLM_LOGGING_LEVEL=a b" in lines
    assert not any("SECRET" in x or "VLLM_X" in x for x in lines)
    assert lines[-4:] == ["python3", "-m", "npd_ascend.workers.process", "command"]
    at = lines.index("box")
    assert lines[at : at + 3] == ["box", "bash", "-c"]


def test_what_runs_in_the_container(docker):
    """docker exec does not run the image's entry point, so the vendor's environment must be sourced by the command."""
    (docker / "docker").write_text('#!/bin/bash\nwhile [ "$1" != box ]; do shift; done\nshift\nexec "$@"\n')
    (docker / "python3").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\ncat\n')
    (docker / "python3").chmod(0o755)
    got = subprocess.run(
        ["bash", SCRIPT, "-c", 'print("a  b")'],
        cwd=docker,
        input="command\n",
        capture_output=True,
        text=True,
        env={"PATH": f"{docker}:{os.environ['PATH']}", "NPD_ROLLOUT_CONTAINER": "box"},
    )
    assert got.returncode == 0 and got.stdout.splitlines() == ["-c", 'print("a  b")', "command"]


def test_vendor_scripts_are_sourced_without_arguments_and_in_silence(docker):
    script = SCRIPT.read_text().replace("/usr/local/Ascend", str(docker))
    for name, code in (
        ("ascend-toolkit", "echo noise; false; export A=toolkit:$#"),
        ("cann-9.1.0/share/info/ascendnpu-ir/bin", "read -r; export B=bisheng"),
        ("nnal/atb", "export C=nnal"),
    ):
        (docker / name).mkdir(parents=True)
        (docker / name / "set_env.sh").write_text(code + "\n")
    (docker / "bridge.sh").write_text(script)
    (docker / "docker").write_text('#!/bin/bash\nwhile [ "$1" != box ]; do shift; done\nshift\nexec "$@"\n')
    (docker / "python3").write_text('#!/bin/bash\necho "$A $B $C"\ncat\n')
    (docker / "python3").chmod(0o755)
    got = subprocess.run(
        ["bash", docker / "bridge.sh", "-m", "x"],
        cwd=docker,
        input="command\n",
        capture_output=True,
        text=True,
        env={"PATH": f"{docker}:{os.environ['PATH']}", "NPD_ROLLOUT_CONTAINER": "box"},
    )
    assert got.returncode == 0 and got.stdout.splitlines() == ["toolkit:0 bisheng nnal", "command"]


def test_without_docker(tmp_path):
    for name in ("bash", "env"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    got = subprocess.run(
        [tmp_path / "bash", SCRIPT, "-c", "1"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert got.returncode == 2 and got.stderr.startswith("error: no docker")
