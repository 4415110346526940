"""scripts/start_node.sh: what it refuses, and which jobs a follower joins (msrun here writes down its call)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "start_node.sh"
NODE = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "NPUS_PER_NODE": "8"}


@pytest.fixture
def start(tmp_path):
    """Factory: (environment) -> process of node 1 over a run directory in ``tmp_path``."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (bin_dir / "msrun").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    for f in bin_dir.iterdir():
        f.chmod(0o755)
    config = tmp_path / "c.yaml"
    config.write_text(f"run: {{dir: {tmp_path}/other}}\nmodels: {{teacher: t, student: s}}\ndata: {{prompts: [p]}}\n")

    def go(env, args=(str(config), "--set", f"run.dir={tmp_path / 'run'}")):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("NODE", "NPUS", "MASTER", "ASCEND"))}
        return subprocess.Popen(["bash", str(SCRIPT), *args], text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                                env={**clean, "NPD_MINDSPORE_PYTHON": str(bin_dir / "python"), **env})

    return go


@pytest.mark.parametrize("change,why", [
    ({"NODES": "two"}, "NODES is 'two'"), ({"NODE_RANK": "2"}, "not below"), ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
    ({"NPUS_PER_NODE": "0"}, "no NPU"), ({"NPD_MINDSPORE_PYTHON": "/none"}, "no such interpreter")])  # fmt: skip
def test_refusals_are_one_line(start, change, why):
    p = start({**NODE, **change})
    _, err = p.communicate(timeout=60)
    assert p.returncode == 2 and why in err and len(err.strip().splitlines()) == 1


def test_needs_a_configuration(start):
    p = start(NODE, args=())
    assert "usage" in p.communicate(timeout=60)[1] and p.returncode == 2
    p = start(NODE, args=("none.yaml",))
    assert "cannot be read" in p.communicate(timeout=60)[1] and p.returncode == 2


def test_joins_open_jobs_once_and_leaves_at_the_end(start, tmp_path):
    run, calls = tmp_path / "run", tmp_path / "calls"
    (run / "jobs").mkdir(parents=True)
    done = run / "generations" / "000" / "train"
    done.mkdir(parents=True)
    (run / "jobs" / "g000-train.json").write_text("{}")
    os.utime(run / "jobs" / "g000-train.json", (1e9, 1e9))
    (done / "done.json").write_text("{}")
    p = start({**NODE, "NODE_WAIT_S": "60"})

    def wait_for(count):
        end = time.monotonic() + 40
        while time.monotonic() < end and (not calls.exists() or len(calls.read_text().splitlines()) < count):
            time.sleep(0.1)
        return calls.read_text().splitlines()

    (run / "jobs" / "g000-select.json").write_text("{}")
    (run / "jobs" / "g001-train.json").write_text("{}")
    (call,) = wait_for(1)
    assert "--worker_num=16 --local_worker_num=8 --node_rank=1 --master_addr=10.0.0.1 --master_port=8118" in call
    assert call.endswith(f"npd_ascend/pipeline/child.py {run}/jobs/g001-train.json")
    os.utime(run / "jobs" / "g001-train.json", (time.time() + 5, time.time() + 5))  # node 0 was started again
    assert len(wait_for(2)) == 2
    (run / "report.html").write_text("")
    _, err = p.communicate(timeout=40)
    assert p.returncode == 0 and "has ended" in err and len(calls.read_text().splitlines()) == 2
