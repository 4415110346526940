"""How the workers of a stage are started: how many, on which node, with which command line and devices. The same on the
executor's node and on others."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.config.job import Job
from npd_ascend.config.schema import AnnotateConfig, RolloutConfig, TrainConfig, WorkerConfig
from npd_ascend.config.stages import STAGES, Side, Stage
from npd_ascend.environments import Environments
from npd_ascend.ops.nodes import Nodes, free_port
from npd_ascend.ops.placement import Placement
from npd_ascend.workers.local import Events, LocalWorker
from npd_ascend.workers.process import NAMED
from npd_ascend.workers.rank import SCRIPT
from npd_ascend.workers.session import PATIENT
from npd_ascend.workers.system import child_environment

_HOST = PATIENT.model_copy(update={"keep_alive": True, "max_failures": WorkerConfig().max_failures})


@dataclass(frozen=True)
class Crew:
    """The workers that do a stage's jobs.

    Attributes:
        name: ``rollout``, ``annotate_teacher``, ``annotate_student``, ``train``; ``host``: all stages without devices.
        section: of the configuration, with their settings; empty: it has none.
        side: devices that they work on; None: none.
        workers: how many share a job.
        ranks: processes of each, under msrun when there are several.
        devices: NPUs of each.
        spread: whether one worker is spread over all nodes; else each is on one.
    """

    name: str
    section: str
    side: Side | None
    workers: int = 1
    ranks: int = 1
    devices: int = 1
    spread: bool = False

    def node(self, index: int, nodes: Nodes) -> int:
        """Number of the node that a worker is on."""
        return index * nodes.count // self.workers if self.side else 0


def crew_of(stage: Stage, job: Job, nodes: Nodes) -> Crew:
    """Who does a job."""
    settings = getattr(job, "settings", None)
    if isinstance(settings, RolloutConfig) and settings.source == "reference":
        return Crew("host", "", None)
    if isinstance(settings, (RolloutConfig, AnnotateConfig, TrainConfig)):
        return _crew(stage, settings, nodes)
    return Crew("host", "", None)


def _crew(stage: Stage, settings: RolloutConfig | AnnotateConfig | TrainConfig, nodes: Nodes) -> Crew:
    if isinstance(settings, RolloutConfig):  # answers to held-out prompts, too: it is the same engine
        return Crew("rollout", "rollout", stage.side, settings.workers, 1, settings.tensor_parallel)
    if isinstance(settings, AnnotateConfig):
        ranks = settings.tensor_parallel
        return Crew(stage.name, "annotate", stage.side, settings.workers, ranks, ranks)
    ranks = settings.ranks
    return Crew("train", "train", stage.side, 1, ranks, ranks, spread=ranks > 1 and nodes.count > 1)


def describe(config: Config, nodes: Nodes) -> list[str]:
    """Which workers each node has, one line a stage."""
    lines = []
    settings: dict[str, RolloutConfig | AnnotateConfig | TrainConfig] = {
        "rollout": config.rollout,
        "annotate_teacher": config.annotate,
        "annotate_student": config.annotate_student,
        "train": config.train,
    }
    for name, section in settings.items():
        crew = _crew(STAGES[name], section, nodes)
        if crew.spread:
            lines.append(f"{name}: one group of {crew.ranks} ranks, {crew.ranks // nodes.count} on each node")
            continue
        counts = Counter(crew.node(i, nodes) for i in range(crew.workers))
        what = f" of {crew.devices} devices" if crew.devices > 1 else ""
        lines.append(
            f"{name}: " + ", ".join(f"{n} worker(s){what} on node {rank}" for rank, n in sorted(counts.items()))
        )
    return lines


def settings_of(job: Job) -> WorkerConfig:
    """When the workers of a job leave, and when they are given up."""
    settings = getattr(job, "settings", None)
    return settings if isinstance(settings, WorkerConfig) else _HOST


@dataclass(frozen=True)
class Here:
    """This node, as far as workers are started on it.

    Attributes:
        config: of the run.
        placement: its devices.
        nodes: which one of them it is.
        environments: its interpreters.
        logs: folder for the logs.
    """

    config: Config
    placement: Placement
    nodes: Nodes
    environments: Environments
    logs: Path

    def start(self, crew: Crew, index: int, events: Events) -> LocalWorker:
        """Starts a worker, or this node's part of one that is spread."""
        python = self.environments.rollout if crew.name == "rollout" else self.environments.mindspore
        log = self.log(crew, index, self.nodes.rank)
        return LocalWorker(
            index,
            command(python, crew, self.nodes, log.with_suffix("")),
            child_environment(python) | environment(crew, index, self.placement, self.nodes),
            log,
            events,
            self.placement.cores(crew.side) if crew.side else None,
            group=crew.ranks > 1,
        )

    def log(self, crew: Crew, index: int, rank: int) -> Path:
        """Log of a worker, or of its part on a node."""
        return self.logs / f"{crew.name}-{index}{f'-node{rank}' if crew.spread and rank else ''}.log"


def command(python: Path, crew: Crew, nodes: Nodes, logs: Path) -> list[str]:
    """Command line of a worker on this node.

    Args:
        python: interpreter; msrun is beside it.
        crew: the worker's.
        nodes: which node this is.
        logs: folder for msrun's own logs; its name is the worker's.
    """
    name = [NAMED, logs.name]
    if crew.ranks == 1:
        return [str(python), "-m", "npd_ascend.workers.process", *name]
    where = [f"--master_port={free_port()}"]
    if crew.spread:
        where = [f"--master_port={nodes.port}", f"--master_addr={nodes.master}", f"--node_rank={nodes.rank}"]
    return [
        str(python.parent / "msrun"),
        f"--worker_num={crew.ranks}",
        f"--local_worker_num={crew.ranks // (nodes.count if crew.spread else 1)}",
        "--join=True",
        "--tail_worker_log=-2",  # no rank's: see workers/rank.py
        *where,
        f"--log_dir={logs}",
        SCRIPT,
        *name,
    ]


def environment(crew: Crew, index: int, placement: Placement, nodes: Nodes) -> dict[str, str]:
    """Variables that give a worker its devices on this node, and its part of the cores."""
    if crew.side is None:
        return {}
    if crew.name == "train":
        return placement.environment(crew.side, 0, max(1, crew.ranks // (nodes.count if crew.spread else 1)))
    here = [i for i in range(crew.workers) if crew.node(i, nodes) == crew.node(index, nodes)]
    place = here.index(index)
    env = placement.environment(crew.side, place * crew.devices, crew.devices)
    if placement.target == "cpu":
        cores = len(placement.cores(crew.side) or os.sched_getaffinity(0))
        threads = str(max(1, cores // (len(here) * crew.ranks)))
        if crew.name == "rollout":
            env["OMP_NUM_THREADS"] = threads if placement.split else os.environ.get("OMP_NUM_THREADS", threads)
        elif placement.split or len(here) * crew.ranks > 1:
            env["OMP_NUM_THREADS"] = threads
    if placement.target == "ascend" and crew.ranks > 1:  # groups on one host would meet on one port
        env["HCCL_IF_BASE_PORT"] = str(int(os.environ.get("HCCL_IF_BASE_PORT", "60000")) + 32 * place)
    return env
