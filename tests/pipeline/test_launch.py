"""Command lines, nodes and devices of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.config.load import parse_config
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pack.job import PackJob
from npd_ascend.pipeline import launch
from npd_ascend.train.job import TrainJob

P = Path("x")
CONFIG = parse_config({
    "run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"}, "data": {"prompts": ["p"]},
    "annotate": {"workers": 4}, "train": {"data_parallel": 4, "global_batch": 4},
    "device": {"placement": {"rollout": 2, "train": 2}}}, "test")  # fmt: skip
TWO = [Nodes(2, r, "10.0.0.1", 9000, "10.0.0.1:6379", True) for r in (0, 1)]
NPUS = Placement.of(CONFIG, "ascend", range(4))


def annotate(worker: int) -> AnnotateJob:
    return AnnotateJob(
        fingerprint="f",
        prompts=P,
        rollouts=P,
        model=P,
        role="teacher",
        vocabulary=9,
        worker=worker,
        settings=CONFIG.annotate,
    )


def train(ranks: int) -> TrainJob:
    settings = CONFIG.train.model_copy(update={"data_parallel": ranks})
    return TrainJob(
        prompts=P,
        rollouts=P,
        topk=None,
        selection=P,
        packs=P,
        student=P,
        snapshot=P,
        checkpoints=P,
        out=P,
        metrics=P,
        fingerprint="f",
        generation=0,
        start_progress=0,
        end_progress=1,
        snapshot_progress=None,
        last=True,
        pad_token_id=0,
        vocabulary=9,
        seed=0,
        settings=settings,
        row_length=128,
        sync=CONFIG.sync,
    )


def argv(job, nodes):
    return launch.command(Path("/env/bin/python"), Path("j.json"), job, nodes, Path("logs"))


def test_training_spreads_over_all_nodes():
    job = train(4)
    assert launch.nodes_of(job, Nodes()) == (0,) and launch.nodes_of(job, TWO[0]) == (0, 1)
    alone = argv(job, Nodes())
    assert alone[:4] == ["/env/bin/msrun", "--worker_num=4", "--local_worker_num=4", "--join=True"]
    assert not any("master_addr" in a or "node_rank" in a for a in alone)
    assert argv(job, TWO[1])[1:] == [
        "--worker_num=4", "--local_worker_num=2", "--join=True", "--master_port=9000", "--master_addr=10.0.0.1",
        "--node_rank=1", "--log_dir=logs", *alone[-2:]]  # fmt: skip
    assert launch.environment(job, NPUS, TWO[1]) == {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}
    assert argv(train(1), TWO[0])[0] == "/env/bin/python" and launch.nodes_of(train(1), TWO[0]) == (0,)
    assert launch.environment(train(1), NPUS, TWO[0]) == {"ASCEND_RT_VISIBLE_DEVICES": "2"}


def test_every_cut_takes_processes():
    job = train(2)
    cut = job.settings.model_copy(update={"context_parallel": 3, "tensor_parallel": 2})
    assert launch.ranks(job.model_copy(update={"settings": cut})) == 12


def test_annotation_workers_have_a_node_and_a_device_each():
    jobs = [annotate(i) for i in range(4)]
    assert [launch.nodes_of(j, TWO[0]) for j in jobs] == [(0,), (0,), (1,), (1,)]
    assert [launch.environment(j, NPUS, TWO[0])["ASCEND_RT_VISIBLE_DEVICES"] for j in jobs] == ["0", "1", "0", "1"]
    cpu = Placement.of(CONFIG, "cpu", range(4))
    assert launch.environment(jobs[0], cpu, TWO[0]) == {"OMP_NUM_THREADS": "1"}
    assert launch.cores(jobs[0], cpu) == (0, 1) and launch.cores(train(4), cpu) == (2, 3)


def test_engines_leave_only_the_devices_that_are_wanted():
    device = CONFIG.device.model_copy(update={"placement": "shared"})
    shared = Placement.of(CONFIG.model_copy(update={"device": device}), "ascend", range(4))
    assert launch.collides(train(4), shared) and launch.collides(annotate(0), shared)
    assert launch.collides(annotate(0), NPUS) and not launch.collides(train(4), NPUS)
    pack = PackJob(
        out=P,
        fingerprint="f",
        prompts=P,
        rollouts=P,
        selection=P,
        epochs=1,
        first_epoch_seed=0,
        group=1,
        settings=CONFIG.pack,
    )
    assert not launch.collides(pack, shared) and launch.environment(pack, shared, Nodes()) == {}


@pytest.mark.parametrize(
    "nodes,workers,wanted", [(Nodes(), 8, False), (TWO[0], 8, True), (TWO[0], 1, False), (Nodes(ray="h:1"), 1, True)]
)
def test_when_ray_places_the_workers(nodes, workers, wanted):
    config = CONFIG.model_copy(update={"rollout": CONFIG.rollout.model_copy(update={"workers": workers})})
    assert launch.spreads(config, nodes) is wanted
