"""Who does a job: command lines, nodes and devices of workers."""

from __future__ import annotations

from pathlib import Path

from npd_ascend.annotate.job import AnnotateJob
from npd_ascend.config.load import parse_config
from npd_ascend.config.stages import STAGES
from npd_ascend.ops.nodes import Nodes
from npd_ascend.ops.placement import Placement
from npd_ascend.pack.job import PackJob
from npd_ascend.pipeline import launch
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.train.job import TrainJob

P = Path("x")
CONFIG = parse_config({
    "run": {"dir": "r"}, "models": {"teacher": "t", "student": "s"}, "data": {"prompts": ["p"]},
    "annotate": {"workers": 4}, "rollout": {"workers": 4}, "train": {"data_parallel": 4, "global_batch": 4},
    "device": {"placement": {"rollout": 2, "train": 2}}}, "test")  # fmt: skip
TWO = [Nodes(2, r, "10.0.0.1", 9000, "10.0.0.1:6379") for r in (0, 1)]
ALONE = Nodes()
NPUS = Placement.of(CONFIG, "ascend", range(4))


def annotate(**settings) -> AnnotateJob:
    return AnnotateJob(
        fingerprint="f",
        prompts=P,
        rollouts=P,
        model=P,
        role="teacher",
        vocabulary=9,
        settings=CONFIG.annotate.model_copy(update=settings),
    )


def rollout(**settings) -> RolloutJob:
    return RolloutJob(
        out=P,
        fingerprint="f",
        prompts=P,
        model=P,
        generation=0,
        seed=0,
        settings=CONFIG.rollout.model_copy(update=settings),
        max_model_len=9,
        eos_token_ids=[1],
        vocabulary=9,
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


def crew(job, nodes=ALONE):
    stage = next(s for s in STAGES.values() if s.job is type(job))
    return launch.crew_of(stage, job, nodes)


def argv(job, nodes):
    return launch.command(Path("/env/bin/python"), crew(job, nodes), nodes, Path("logs"))


def environment(job, placement, nodes, index=0):
    return launch.environment(crew(job, nodes), index, placement, nodes)


def test_training_spreads_over_all_nodes():
    job = train(4)
    assert not crew(job).spread and crew(job, TWO[0]).spread
    alone = argv(job, Nodes())
    assert alone[:5] == [
        "/env/bin/msrun", "--worker_num=4", "--local_worker_num=4", "--join=True", "--tail_worker_log=-2"]  # fmt: skip
    assert not any("master_addr" in a or "node_rank" in a for a in alone)
    assert argv(job, TWO[1])[1:] == [
        "--worker_num=4", "--local_worker_num=2", "--join=True", "--tail_worker_log=-2", "--master_port=9000",
        "--master_addr=10.0.0.1", "--node_rank=1", "--log_dir=logs", *alone[-3:]]  # fmt: skip
    assert environment(job, NPUS, TWO[1]) == {"ASCEND_RT_VISIBLE_DEVICES": "2,3"}
    assert argv(train(1), TWO[0])[0] == "/env/bin/python" and not crew(train(1), TWO[0]).spread
    assert environment(train(1), NPUS, TWO[0]) == {"ASCEND_RT_VISIBLE_DEVICES": "2"}


def test_every_cut_takes_processes():
    job = train(2)
    cut = job.settings.model_copy(update={"context_parallel": 3, "tensor_parallel": 2})
    assert crew(job.model_copy(update={"settings": cut})).ranks == 12


def test_workers_have_a_node_and_devices_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for job in (annotate(), rollout()):
        team = crew(job, TWO[0])
        assert [team.node(i, TWO[0]) for i in range(4)] == [0, 0, 1, 1] and team.node(3, Nodes()) == 0
        seen = [environment(job, NPUS, TWO[0], i)["ASCEND_RT_VISIBLE_DEVICES"] for i in range(4)]
        assert seen == ["0", "1", "0", "1"]
        cpu = Placement.of(CONFIG, "cpu", range(4))
        assert environment(job, cpu, TWO[0]) == {"OMP_NUM_THREADS": "1"}
        assert cpu.cores(team.side) == (0, 1) and cpu.cores(crew(train(4)).side) == (2, 3)
    shared = CONFIG.model_copy(update={"device": CONFIG.device.model_copy(update={"placement": "shared"})})
    wide, four = annotate(workers=2, tensor_parallel=2), Placement.of(shared, "ascend", range(4))
    seen = [environment(wide, four, ALONE, i) for i in range(2)]
    assert [e["ASCEND_RT_VISIBLE_DEVICES"] for e in seen] == ["0,1", "2,3"]
    assert [e["HCCL_IF_BASE_PORT"] for e in seen] == ["60000", "60032"]


def test_who_does_what():
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
    assert crew(pack).name == "host" and environment(pack, NPUS, Nodes()) == {}
    assert crew(rollout()).name == "rollout" and crew(rollout(source="reference")).name == "host"
    assert launch.settings_of(pack).keep_alive is True and launch.settings_of(annotate()).keep_alive == "auto"


def test_the_dry_run_says_who_is_where():
    assert launch.describe(CONFIG, TWO[0]) == [
        "rollout: 2 worker(s) on node 0, 2 worker(s) on node 1",
        "annotate_teacher: 2 worker(s) on node 0, 2 worker(s) on node 1",
        "annotate_student: 2 worker(s) on node 0, 2 worker(s) on node 1",
        "train: one group of 4 ranks, 2 on each node",
    ]
    assert launch.describe(CONFIG, ALONE)[-1] == "train: 1 worker(s) of 4 devices on node 0"
