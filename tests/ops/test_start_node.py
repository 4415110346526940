"""scripts/start_node.sh: what it refuses, and what each node runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "start_node.sh"
NODE = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


@pytest.fixture
def start(tmp_path):
    """Factory: (environment, arguments) -> the ended process; the interpreter writes down its call."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$NODES $NODE_RANK $MASTER_PORT $@" > {tmp_path}/call\n')
    python.chmod(0o755)
    (tmp_path / "c.yaml").write_text("run: {dir: x}\n")

    def go(env, *args):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NODE", "MASTER", "ASCEND", "NPD"))}
        both = {"NPD_MINDSPORE_PYTHON": str(python), "NPD_ROLLOUT_PYTHON": sys.executable}
        return subprocess.run(
            ["bash", str(SCRIPT), *args], text=True, capture_output=True, env={**clean, **both, **env}
        )

    return go


@pytest.mark.parametrize(
    "change,why",
    [({"NODES": "two"}, "NODES is 'two'"), ({"NODE_RANK": "2"}, "not below"), ({"MASTER_ADDR": ""}, "MASTER_ADDR")],
)
def test_refusals_are_one_line(start, tmp_path, change, why):
    p = start({**NODE, **change}, str(tmp_path / "c.yaml"))
    assert p.returncode == 2 and why in p.stderr and len(p.stderr.strip().splitlines()) == 1


def test_needs_a_configuration(start):
    p = start(NODE)
    assert p.returncode == 2 and "usage" in p.stderr
    p = start(NODE, "none.yaml")
    assert p.returncode == 2 and "cannot be read" in p.stderr


@pytest.mark.parametrize("rank,command", [("0", "run"), ("1", "join")])
def test_node_0_runs_and_the_others_join(start, tmp_path, rank, command):
    p = start({**NODE, "NODE_RANK": rank}, str(tmp_path / "c.yaml"), "--set", "train.lr=1e-4")
    assert p.returncode == 0, p.stderr
    assert (tmp_path / "call").read_text().split() == [
        "2",
        rank,
        "8118",
        "-m",
        "npd_ascend.cli",
        command,
        str(tmp_path / "c.yaml"),
        "--set",
        "train.lr=1e-4",
    ]


def test_vendor_scripts_may_fail_and_get_no_arguments(start, tmp_path):
    for name in ("ascend-toolkit", "nnal/atb"):
        (tmp_path / "ascend" / name).mkdir(parents=True)
        (tmp_path / "ascend" / name / "set_env.sh").write_text(
            f'x=$(false)\nfalse\necho "$NEVER_SET"\necho "$# $*" >> {tmp_path}/given\n'
        )
    p = start({**NODE, "ASCEND_HOME": str(tmp_path / "ascend")}, str(tmp_path / "c.yaml"), "--cxx_abi=0")
    assert p.returncode == 0, p.stderr
    assert (tmp_path / "given").read_text().splitlines() == ["0 ", "0 "] and (tmp_path / "call").exists()
