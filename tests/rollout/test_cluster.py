"""Workers on a Ray cluster of two nodes in this machine, one of which dies midway."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from npd_ascend.errors import UserError
from npd_ascend.rollout import stage
from npd_ascend.rollout.cluster import Cluster
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.store.dataset import Dataset

ray = pytest.importorskip("ray")
PYTHON = Path(sys.executable)
SLOW = """
import time
from npd_ascend.rollout import reference, worker
write = reference.commit_table
def slowly(*args, **more):
    time.sleep(0.4)
    write(*args, **more)
reference.commit_table = slowly
worker.main()
"""


@pytest.fixture
def nodes():
    """A cluster of two nodes with a core each, and the second node."""
    from ray.cluster_utils import Cluster as RayCluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = RayCluster(initialize_head=True, head_node_args=small)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20, node_ip_address="127.0.0.2")
        # A driver joins the node of this machine that was started last, which must not be the one that dies.
        cluster.add_node(num_cpus=0, object_store_memory=80 << 20)
        yield cluster, second
    finally:
        cluster.shutdown()


def kill_when(folder: Path, shards: int, cluster, node) -> threading.Thread:
    """Takes a node away, without a word, once so many shards are committed."""

    def watch():
        deadline = time.monotonic() + 120
        while len(list(folder.glob("shard-*.json"))) < shards and time.monotonic() < deadline:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_node_that_dies_costs_nothing(tmp_path, make_prompts, make_job, nodes, capfd, monkeypatch):
    monkeypatch.setenv("NPD_PLACE_S", "8")
    (tmp_path / "slow.py").write_text(SLOW)
    prompts = make_prompts(tmp_path / "p", 48, 2)
    job = make_job(tmp_path / "out", prompts, source="reference")
    ray_cluster, second = nodes
    slow = [sys.executable, str(tmp_path / "slow.py")]
    cluster = Cluster(PYTHON, ray_cluster.address, tmp_path / "logs", command=slow)
    with RolloutPool(PYTHON, 2, tmp_path / "logs", cluster=cluster) as pool:
        killer = kill_when(job.out, 6, ray_cluster, second)
        pool.run(job)
        killer.join()
        stage.run(alone := make_job(tmp_path / "alone", prompts, source="reference"))
        assert Dataset.open(job.out, "rollouts").read_all() == Dataset.open(alone.out, "rollouts").read_all()
        said = capfd.readouterr().err
        assert said.count("is on ") == 2 and "lost by Ray" in said
        assert "no node has had room for 8 s; the others go on" in said
        assert not list(job.out.glob("*.journal"))
        pool.run(make_job(tmp_path / "again", prompts, source="reference"))  # with what is left
        assert Dataset.open(tmp_path / "again", "rollouts").rows == 48
    assert (tmp_path / "logs" / "ray-driver.log").is_file()


@pytest.mark.slow
@pytest.mark.vllm
def test_engines_on_two_nodes_answer_as_one_does(tmp_path, checkpoints, make_prompts, make_job, nodes, monkeypatch):
    pytest.importorskip("vllm")
    monkeypatch.setenv("NPD_PLACE_S", "20")
    prompts = make_prompts(tmp_path / "p", 96, 4)
    ray_cluster, second = nodes
    job = make_job(tmp_path / "out", prompts, checkpoints[0])
    cluster = Cluster(PYTHON, ray_cluster.address, tmp_path / "logs")
    with RolloutPool(PYTHON, 2, tmp_path / "logs", cluster=cluster) as p:
        killer = kill_when(job.out, 4, ray_cluster, second)
        p.run(job)
        killer.join()
    with RolloutPool(PYTHON, 1, tmp_path / "logs") as p:
        p.run(make_job(tmp_path / "alone", prompts, checkpoints[0]))
    two, one = (Dataset.open(tmp_path / name, "rollouts").read_all() for name in ("out", "alone"))
    for column in ("sample_id", "prompt_index", "path", "response_ids", "finish_reason"):
        assert two[column].to_pylist() == one[column].to_pylist()


def test_cluster_that_is_not_there(tmp_path, make_prompts, make_job, monkeypatch):
    monkeypatch.setenv("NPD_PLACE_S", "1")
    job = make_job(tmp_path / "a", make_prompts(tmp_path / "p", 4, 2), source="reference")
    with RolloutPool(PYTHON, 1, tmp_path, cluster=Cluster(PYTHON, "127.0.0.1:9", tmp_path)) as pool:
        with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:9"):
            pool.run(job)


def test_environment_without_ray(tmp_path, make_prompts, make_job):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "ray.py").write_text("raise ImportError('not installed')\n")
    path = f"{tmp_path / 'none'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    job = make_job(tmp_path / "a", make_prompts(tmp_path / "p", 4, 2), source="reference")
    cluster = Cluster(PYTHON, "127.0.0.1:9", tmp_path, env={"PYTHONPATH": path})
    with RolloutPool(PYTHON, 1, tmp_path, cluster=cluster) as pool, pytest.raises(UserError, match="pip install"):
        pool.run(job)
