"""How a job is started: its command line, its nodes, its devices. The same on the executor's node and on others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.config import Config
from npd_ascend.config.job import Job
from npd_ascend.config.stages import Side, side_of
from npd_ascend.ops.nodes import Nodes, free_port
from npd_ascend.ops.placement import Placement
from npd_ascend.pipeline import child as child_module
from npd_ascend.pipeline.processes import child_environment
from npd_ascend.rollout.cluster import Cluster, RayNode
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.train.job import TrainJob


def ranks(job: Job) -> int:
    """Processes that work on a job together, under msrun when there are several."""
    if isinstance(job, TrainJob):
        return job.settings.ranks
    if isinstance(job, AnnotateJob):
        return job.settings.tensor_parallel
    return 1


def nodes_of(job: Job, nodes: Nodes) -> tuple[int, ...]:
    """Numbers of the nodes that a job runs on: training on all, an annotation worker on its own, others on node 0."""
    if isinstance(job, TrainJob) and ranks(job) > 1:
        return tuple(range(nodes.count))
    if isinstance(job, AnnotateJob):
        return (job.worker * nodes.count // job.settings.workers,)
    return (0,)


def command(python: Path, path: Path, job: Job, nodes: Nodes, logs: Path) -> list[str]:
    """Command line of a job on this node.

    Args:
        python: interpreter of the MindSpore environment; msrun is beside it.
        path: the job's file.
        job: the job.
        nodes: which node this is.
        logs: folder for the logs of msrun's ranks.
    """
    run = [child_module.__file__, str(path)]
    n = ranks(job)
    if n == 1:
        return [str(python), *run]
    spread = len(nodes_of(job, nodes))
    where = [f"--master_port={free_port()}"]
    if spread > 1:
        where = [f"--master_port={nodes.port}", f"--master_addr={nodes.master}", f"--node_rank={nodes.rank}"]
    return [
        str(python.parent / "msrun"),
        f"--worker_num={n}",
        f"--local_worker_num={n // spread}",
        "--join=True",
        *where,
        f"--log_dir={logs}",
        *run,
    ]


def environment(job: Job, placement: Placement, nodes: Nodes) -> dict[str, str]:
    """Variables that give a job its devices on this node, and its part of the cores."""
    side = _side(job)
    if side is None:
        return {}
    if isinstance(job, AnnotateJob):
        local = max(1, job.settings.workers // nodes.count)
        env = placement.environment(side, job.worker % local * ranks(job), ranks(job))
        if placement.target == "cpu" and (local * ranks(job) > 1 or placement.split):
            cores = len(placement.cores(side) or ()) or os.cpu_count() or 1
            env["OMP_NUM_THREADS"] = str(max(1, cores // (local * ranks(job))))
        if placement.target == "ascend" and ranks(job) > 1:  # groups on one host would meet on one port
            base = int(os.environ.get("HCCL_IF_BASE_PORT", "60000"))
            env["HCCL_IF_BASE_PORT"] = str(base + 32 * (job.worker % local))
        return env
    return placement.environment(side, 0, max(1, ranks(job) // len(nodes_of(job, nodes))))


def cores(job: Job, placement: Placement) -> tuple[int, ...] | None:
    """Cores that a job is tied to; None: all."""
    side = _side(job)
    return placement.cores(side) if side else None


def collides(job: Job, placement: Placement) -> bool:
    """Whether a job needs the devices on which rollout engines stand."""
    side = _side(job)
    return side is not None and placement.collide(side)


def ray_node(config: Config, placement: Placement, nodes: Nodes, python: Path, logs: Path) -> RayNode | None:
    """Starts this node's part of the run's own Ray cluster, where rollouts are to spread over nodes."""
    if not nodes.own_ray or not spreads(config, nodes):
        return None
    npus = len(placement.rollout) if placement.target == "ascend" else 0
    cpus = len(placement.rollout) if placement.target == "cpu" else os.cpu_count() or 1
    return RayNode(
        python,
        nodes.rank,
        nodes.ray,
        logs,
        cpus=cpus,
        npus=npus,
        env=child_environment(python, progress_file(logs, nodes.rank)) | placement.environment("rollout"),
    )


def ray_cluster(
    config: Config, placement: Placement, nodes: Nodes, python: Path, logs: Path, env: Mapping[str, str]
) -> Cluster | None:
    """Where rollout workers run when it is not this node alone."""
    if not spreads(config, nodes):
        return None
    threads = max(1, len(placement.rollout) * nodes.count // config.rollout.workers)
    return Cluster(
        python,
        nodes.ray,
        logs,
        target=placement.target,
        threads=threads,
        tensor_parallel=config.rollout.tensor_parallel,
        env=env,
    )


def spreads(config: Config, nodes: Nodes) -> bool:
    """Whether Ray places the rollout workers."""
    return bool(nodes.ray) and (config.rollout.workers > 1 or not nodes.own_ray)


def progress_file(logs: Path, rank: int) -> Path:
    """Where the stages of a node report; one file a node, since appending is not atomic between machines."""
    return logs / ("progress.jsonl" if rank == 0 else f"progress-node{rank}.jsonl")


def _side(job: Job) -> Side | None:
    """Devices that a process of a job works on; rollouts that take engines are not processes of this kind."""
    return None if isinstance(job, RolloutJob) else side_of(type(job))
