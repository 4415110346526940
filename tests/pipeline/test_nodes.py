"""Two nodes on this machine: the executor and a follower, one training process and one annotation worker each."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from npd_ascend.ops.nodes import free_port
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def node(tmp_path):
    """Factory: (rank, config, environment) -> process of one of two nodes."""
    port, started = free_port(), []

    def go(rank, config, *args, **env):
        command = ["run" if rank == 0 else "join", str(config), *args]
        started.append(subprocess.Popen(
            [sys.executable, "-m", "npd_ascend.cli", *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, "NODES": "2", "NODE_RANK": str(rank), "MASTER_PORT": str(port),
                                           "MASTER_ADDR": "127.0.0.1", "NODE_STALL_S": "20", **env}))  # fmt: skip
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@pytest.fixture
def elsewhere(tmp_path):
    """Interpreter of node 1. Its msrun must not take node 0's address for its own, or it starts a scheduler, too."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "msrun").write_text(
        f"#!{sys.executable}\nfrom mindspore.parallel.cluster.process_entity import _api\n"
        "_api._is_local_ip = lambda address: False\n"
        "from mindspore.parallel.cluster.run import main\nmain()\n")  # fmt: skip
    for file in folder.iterdir():
        file.chmod(0o755)
    return str(folder / "python")


def test_same_student_as_of_one_process(tiny, tmp_path, node, elsewhere):
    """Gradients are summed in another order, so close instead of equal."""
    settings = {"sync": {"refreshes": 0, "lag_every": 0}, "evaluate": {"prompts": []}, "annotate": {"workers": 2},
                "rollout": {"samples": 0, "shard_size": 6}}  # fmt: skip
    train = {"epochs": 1, "global_batch": 4, "micro_batch": 1}
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    code, out = tiny.run(tiny.config(one.root, train=train, **settings))
    assert code == 0, out
    shutil.copytree(one.root, two.root)  # the rollouts stay, all that several nodes make is made again
    for folder in ("checkpoints", "export", "generations/000/train", "generations/000/topk",
                   "generations/000/scores_teacher", "generations/000/scores_student"):  # fmt: skip
        shutil.rmtree(two.root / folder)
    two.metrics.unlink()
    config = tiny.config(two.root, train={**train, "data_parallel": 2}, **settings)
    follower, conductor = node(1, config, NPD_MINDSPORE_PYTHON=elsewhere), node(0, config, "--redo")
    out = conductor.communicate()[0]
    assert conductor.returncode == 0, out
    said = follower.communicate(timeout=300)[0]
    assert follower.returncode == 0 and "has ended" in said, said
    assert "joins g000-annotate_teacher-1" in said and "joins g000-train" in said
    for name in ("scores_teacher", "scores_student"):
        a, b = (Dataset.open(r.generation(0).root / name, "scores").read_all() for r in (one, two))
        for column in a.column_names:
            np.testing.assert_array_equal(*(t[column].to_numpy() for t in (a, b)), err_msg=column)  # NaN is NaN
    a, b = (load_file(r.export / "model.safetensors") for r in (one, two))
    assert a.keys() == b.keys() and all(np.abs(a[k] - b[k]).max() <= 2e-5 for k in a)
    losses = [[r["loss"] for r in read_metrics(r.metrics) if r["kind"] == "train"] for r in (one, two)]
    assert len(losses[0]) > 1 and np.allclose(*losses, rtol=1e-4)


def test_run_directory_that_is_not_shared(tiny, tmp_path, node):
    here, there = tiny.config(tmp_path / "a" / "run"), tiny.config(tmp_path / "b" / "run")
    conductor = node(0, here, NODE_WAIT_S="3")
    follower = node(1, there, NODE_WAIT_S="3")
    for process, who in ((conductor, "node 1 of 2 has not answered"), (follower, "node 1: no run has begun")):
        out = process.communicate(timeout=300)[0]
        last = out.strip().splitlines()[-1]
        assert process.returncode == 2 and who in last and "shared storage" in last, out


def test_follower_outlives_a_killed_conductor_and_hears_of_a_failure(tiny, tmp_path, node):
    config = tiny.config(tmp_path / "run")
    follower = node(1, config, NODE_STALL_S="2", NODE_WAIT_S="300")
    first = node(0, config)
    beat = tmp_path / "run" / "nodes" / "node-1.json"
    deadline = time.monotonic() + 300
    while not beat.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run = json.loads(beat.read_text())["run"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    bad = node(0, config, "--stage", "train")  # nothing is packed yet: it fails
    bad.communicate(timeout=300)
    out = follower.communicate(timeout=300)[0]
    assert bad.returncode == 2 and follower.returncode == 2
    assert "fallen silent" in out and "the run has ended on node 0" in out.splitlines()[-1], out
    assert json.loads(beat.read_text())["run"] != run


def test_join_needs_to_know_which_node_it_is(tiny, tmp_path):
    out = subprocess.run([sys.executable, "-m", "npd_ascend.cli", "join", str(tiny.config(tmp_path / "run"))],
                         capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert out.returncode == 2 and "NODE_RANK" in out.stderr
