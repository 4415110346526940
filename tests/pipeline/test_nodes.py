"""Two nodes on this machine, each with Ray of its own: workers on both, and either of them lost."""

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
from npd_ascend.progress import ProgressTail
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import read_metrics
from npd_ascend.workers.system import descendants

pytest.importorskip("ray")
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"sync": {"refreshes": 0, "lag_every": 0}, "evaluate": {"prompts": []}, "annotate": {"workers": 2},
            "rollout": {"samples": 0, "shard_size": 2, "workers": 2}}  # fmt: skip
TRAIN = {"epochs": 1, "global_batch": 4, "micro_batch": 1}
SOON = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000", "NODE_PLACE_S": "5",
        "RAY_health_check_timeout_ms": "3000", "RAY_health_check_failure_threshold": "2",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "8"}  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.mindspore, pytest.mark.timeout(1500)]


@pytest.fixture
def node(tmp_path):
    """Factory: (rank, config, environment) -> process of one of two nodes."""
    ports, started = {"MASTER_PORT": str(free_port()), "NPD_RAY_PORT": str(free_port())}, []

    def go(rank, config, *args, cwd=ROOT, **env):
        command = ["run" if rank == 0 else "join", str(config), *args]
        # An address each, or Ray connects node 0 to any of the nodes of this machine, and so to one that is lost.
        own = {"NODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.2", "NODE_ADDR": f"127.0.0.{rank + 2}"}
        with open(tmp_path / f"node-{rank}-{len(started)}.out", "w") as out:
            started.append(subprocess.Popen(
                [sys.executable, "-m", "npd_ascend.cli", *command], cwd=cwd, stdout=out, stderr=subprocess.STDOUT,
                env={**os.environ, **own, **ports, **env}))  # fmt: skip
        started[-1].out, started[-1].rank = Path(out.name), rank
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def wait_until(what, *processes, seconds=600):
    deadline = time.monotonic() + seconds
    while not what():
        for process in processes:
            assert process.poll() is None, process.out.read_text()
        assert time.monotonic() < deadline, [p.out.read_text()[-3000:] for p in processes]
        time.sleep(0.05)


@pytest.fixture
def interpreters(tmp_path):
    """Of each node. msrun starts the scheduler where it takes node 0's address for its own, which it cannot tell of two
    nodes on one machine."""
    found = []
    for rank in (0, 1):
        folder = tmp_path / f"interpreter-{rank}"
        folder.mkdir()
        (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (folder / "msrun").write_text(
            f"#!{sys.executable}\nfrom mindspore.parallel.cluster.process_entity import _api\n"
            f"_api._is_local_ip = lambda address: {rank == 0}\n"
            "from mindspore.parallel.cluster.run import main\nmain()\n")  # fmt: skip
        for file in folder.iterdir():
            file.chmod(0o755)
        found.append(str(folder / "python"))
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> RunDir:
    """The same run on one node."""
    run = RunDir(tmp_path_factory.mktemp("undisturbed") / "one")
    code, out = tiny.run(tiny.config(run.root, train=TRAIN, **SETTINGS))
    assert code == 0, out
    return run


def losing(run: RunDir, name: str):
    """Whether a stage is at work on a shard or step."""
    tail, seen = ProgressTail(run.logs / "progress.jsonl"), []

    def met() -> bool:
        seen.extend(tail.poll())
        if name == "rollout":
            return bool(list(run.generation(0).rollouts.glob("*.journal")))
        # The first event after the stage has begun comes from its workers.
        at = next((i for i, e in enumerate(seen) if e["event"] == "begin" and e.get("stage") == name), None)
        return at is not None and len(seen) > at + 1

    return met


def end(process) -> None:
    """SIGKILL of a node: the command, and Ray with all that it has started, at one blow."""
    for pid in reversed(descendants(process.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def signal_all(process, number) -> set[int]:
    """A signal to a node: the command, and Ray with all that it has started. Returns their numbers."""
    told: set[int] = set()
    while new := set(descendants(process.pid)) - told:  # one that is not stopped yet may start another
        for pid in new:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        told |= new
    return told


def named(process, name: str) -> list[int]:
    """Processes that a node has started, by a part of their command line."""
    found = []
    for pid in descendants(process.pid):
        try:
            if name in (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                found.append(pid)
        except OSError:
            continue
    return found


def assert_same_answers(one: RunDir, two: RunDir) -> None:
    a, b = (Dataset.open(r.generation(0).rollouts, "rollouts").read_all() for r in (one, two))
    assert a.select(["sample_id", "response_ids"]).equals(b.select(["sample_id", "response_ids"]))
    for name in ("scores_teacher", "scores_student"):
        a, b = (Dataset.open(r.generation(0).root / name, "scores").read_all() for r in (one, two))
        for column in a.column_names:
            np.testing.assert_array_equal(*(t[column].to_numpy() for t in (a, b)), err_msg=column)  # NaN is NaN


def student(run: RunDir) -> bytes:
    return (run.export / "model.safetensors").read_bytes()


def test_a_node_that_dies_in_each_stage_costs_nothing(tiny, tmp_path, node, interpreters, undisturbed):
    """Node 1 is killed in rollout, annotation and training, and comes back each time. Gradients are summed in another
    order than by one process, so its student is close instead of equal."""
    one, two = undisturbed, RunDir(tmp_path / "two")
    config = tiny.config(two.root, train={**TRAIN, "data_parallel": 2}, **SETTINGS)

    def lend():
        return node(1, config, NPD_MINDSPORE_PYTHON=interpreters[1])

    conductor, other = node(0, config, NPD_MINDSPORE_PYTHON=interpreters[0]), lend()
    for stage in ("rollout", "annotate teacher", "train"):
        wait_until(losing(two, stage), conductor)
        end(other)
        other = lend()
    assert conductor.wait(900) == 0, conductor.out.read_text()
    assert other.wait(120) == 0 and "the run has ended" in other.out.read_text()
    said = conductor.out.read_text()
    assert "on node 1" in said and "lost" in said, said
    assert_same_answers(one, two)
    a, b = (load_file(r.export / "model.safetensors") for r in (one, two))
    assert a.keys() == b.keys() and all(np.abs(a[k] - b[k]).max() <= 2e-5 for k in a)
    losses = [[r["loss"] for r in read_metrics(r.metrics) if r["kind"] == "train"] for r in (one, two)]
    assert len(losses[0]) > 1 and np.allclose(*losses, rtol=1e-4)


def test_a_node_that_is_cut_off_and_comes_back(tiny, tmp_path, node, undisturbed):
    """Node 1 stops with shards of rollouts in hand, and goes on when others have made them."""
    run = RunDir(tmp_path / "run")
    config = tiny.config(run.root, train=TRAIN, **SETTINGS)
    conductor, other = node(0, config, **SOON), node(1, config, **SOON)
    folder = run.generation(0).rollouts

    def first_worker() -> list[int]:
        return named(conductor, "worker rollout-0")

    wait_until(first_worker, conductor, other)
    (worker,) = first_worker()
    os.kill(worker, signal.SIGSTOP)  # so that the shards are node 1's
    wait_until(lambda: any(p.stat().st_size for p in folder.glob("*.journal")), conductor, other)
    stopped = signal_all(other, signal.SIGSTOP)
    held = {int(p.name) for p in folder.glob(".tmp-shards/*/*") if p.name.isdigit() and p.parent.name != "free"}
    assert held and not (folder / "manifest.json").exists()
    os.kill(worker, signal.SIGCONT)
    wait_until((folder / "manifest.json").exists, conductor)
    made = {p.name: p.read_bytes() for p in folder.glob("shard-*")}
    assert held <= {int(n[6:11]) for n in made}
    signal_all(other, signal.SIGCONT)
    assert conductor.wait(600) == 0, conductor.out.read_text()
    assert other.wait(120) == 0 and "the run has ended" in other.out.read_text(), other.out.read_text()
    assert "lost" in (said := conductor.out.read_text()) and "the others go on" in said, said
    assert made == {p.name: p.read_bytes() for p in folder.glob("shard-*")} and not list(folder.glob(".tmp-*"))
    assert not [pid for pid in stopped if Path(f"/proc/{pid}").exists()]
    assert_same_answers(undisturbed, run)
    assert student(run) == student(undisturbed)


def test_node_0_that_is_stopped_for_longer_than_ray_waits(tiny, tmp_path, node, undisturbed):
    """It stops in annotation and goes on after twice the time in which nodes give each other up."""
    run = RunDir(tmp_path / "run")
    for made in (undisturbed.root / "prompts", undisturbed.generation(0).rollouts):
        shutil.copytree(made, run.root / made.relative_to(undisturbed.root))
    shutil.copy(undisturbed.config, run.config)
    config = tiny.config(run.root, train=TRAIN, **SETTINGS)
    conductor, other = node(0, config, **SOON), node(1, config, **SOON)
    wait_until(losing(run, "annotate teacher"), conductor, other)
    stopped = signal_all(conductor, signal.SIGSTOP)
    time.sleep(20)
    signal_all(conductor, signal.SIGCONT)
    code = conductor.wait(600)
    if code == 2:  # it has lost the others: one line, and the same command goes on
        assert "Traceback" not in conductor.out.read_text()
        again = node(0, config, **SOON)
        code = again.wait(600)
    assert code == 0, conductor.out.read_text()
    assert other.wait(120) == 0 and "the run has ended" in other.out.read_text(), other.out.read_text()
    assert not [pid for pid in stopped if Path(f"/proc/{pid}").exists()]
    assert_same_answers(undisturbed, run)
    assert student(run) == student(undisturbed)


def test_run_directory_that_is_not_shared(tiny, tmp_path, node):
    """Each node has its own folder under the same path, relative to where it is started."""
    config = tiny.config(tmp_path / "run", run={"dir": "run"})
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    conductor, other = (node(rank, config, cwd=tmp_path / str(rank)) for rank in (0, 1))
    assert conductor.wait(300) == 2
    assert "node 1 does not see" in (said := conductor.out.read_text()) and "shared storage" in said
    assert other.poll() is None


def test_a_node_that_does_not_come(tiny, tmp_path, node):
    conductor, other = node(0, tiny.config(tmp_path / "run"), NODE_WAIT_S="15"), None
    assert conductor.wait(300) == 2, conductor.out.read_text()
    last = conductor.out.read_text().strip().splitlines()[-1]
    assert "node 1 of 2 has not joined within 15 s" in last and "NODE_RANK=1" in last
    other = node(1, tiny.config(tmp_path / "other"), NODE_WAIT_S="2")
    assert other.wait(300) == 2
    assert "node 0 has not been at" in other.out.read_text().strip().splitlines()[-1]


def test_a_node_outlives_node_0_and_hears_of_a_failure(tiny, tmp_path, node):
    config, run = tiny.config(tmp_path / "run"), RunDir(tmp_path / "run")
    first, other = node(0, config), node(1, config)
    wait_until((run.root / "prompts").exists, first, other)
    end(first)
    bad = node(0, config, "--stage", "train")  # nothing is packed yet: it fails
    assert bad.wait(300) == 2, bad.out.read_text()
    assert other.wait(120) == 2
    said = other.out.read_text()
    assert "node 0 is gone" in said and "the run has ended on node 0" in said.splitlines()[-1], said


def test_join_needs_to_know_which_node_it_is(tiny, tmp_path):
    out = subprocess.run([sys.executable, "-m", "npd_ascend.cli", "join", str(tiny.config(tmp_path / "run"))],
                         capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert out.returncode == 2 and "NODE_RANK" in out.stderr
