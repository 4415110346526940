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
    env = {"PATH": f"{docker}:{os.environ['PATH']}", "ASCEND_RT_VISIBLE_DEVICES": "4,5", "VLLM_LOGGING_LEVEL": "a b",
           "NPD_ROLLOUT_CONTAINER": "box", "SECRET": "x", "BASH_FUNC_f%%": "() { VLLM_X=1\n}"}
    got = subprocess.run(["bash", SCRIPT, "-m", "npd_ascend.rollout.worker"], env=env, cwd=docker, input="command\n",
                         capture_output=True, text=True)
    lines = got.stdout.splitlines()
    assert got.returncode == 0 and lines[:4] == ["exec", "-i", "-w", str(docker)]
    assert "ASCEND_RT_VISIBLE_DEVICES=4,5" in lines and "VLLM_LOGGING_LEVEL=a b" in lines
    assert not any("SECRET" in x or "VLLM_X" in x for x in lines)
    assert lines[-5:] == ["box", "python3", "-m", "npd_ascend.rollout.worker", "command"]


def test_without_docker(tmp_path):
    for name in ("bash", "env"):
        (tmp_path / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    got = subprocess.run([tmp_path / "bash", SCRIPT, "-c", "1"], env={"PATH": str(tmp_path)}, capture_output=True,
                         text=True)
    assert got.returncode == 2 and got.stderr.startswith("error: no docker")
