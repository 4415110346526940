"""Workers: jobs in, events out; one clear line for each failure, no orphan, and what is kept."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend import progress
from npd_ascend.config.schema import SelectConfig, WorkerConfig
from npd_ascend.errors import CorruptShard, UserError
from npd_ascend.out_of_memory import resident_bytes
from npd_ascend.select.job import SelectJob
from npd_ascend.store.dataset import Dataset
from npd_ascend.workers.failures import PoolClosed, advice, cause, last_error, lasts
from npd_ascend.workers.jobfile import write_job
from npd_ascend.workers.local import LocalWorker
from npd_ascend.workers.session import Session, Work
from npd_ascend.workers.system import child_environment, descendants

PYTHON = Path(sys.executable)
ODD = """
import os, signal, sys, time
from pathlib import Path

class Kept:
    jobs = 0

def run(job, kept):
    kept.jobs += 1
    mark = Path(job.out).with_name(f"tried-{kept.jobs}-{os.getpid()}")
    mark.write_text("")
    first = len(list(mark.parent.glob("tried-*"))) == 1
    how = os.environ["ODD"]
    if how == "count":
        return [kept.jobs, os.getpid()]
    if how == "hang" and first:
        from npd_ascend.progress import have
        have({0: 1}, 1, 1)
        stuck()
    if how == "beat":
        from npd_ascend.progress import message
        for _ in range(10):
            message("at work")
            time.sleep(0.1)
    if how == "die" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "wrapped":
        try:
            {}["no such tensor"]
        except KeyError as e:
            raise RuntimeError("Engine core initialization failed. See root cause above.") from e
    if how == "again":
        raise RuntimeError("Call aclrtMalloc: EE1001: a device is away\\n----\\n- C++ Call Stack:\\nfoo.cc:3")
    return how

def stuck():
    time.sleep(600)
"""


@pytest.fixture
def job(tmp_path):
    d = Dataset(tmp_path / "rollouts", "rollouts", "r")
    n = 4
    d.write_table(0, pa.table({
        "sample_id": np.arange(n), "prompt_index": np.arange(n), "path": np.zeros(n, np.int8),
        "response_ids": [[1, 2]] * n, "logprobs": [[-1.0, -2.0]] * n,
        "label_ids": pa.array([None] * n, pa.list_(pa.int32())), "finish_reason": ["stop"] * n}))  # fmt: skip
    d.finish(1)
    return SelectJob(out=tmp_path / "selection", fingerprint="s", rollouts=tmp_path / "rollouts",
                     settings=SelectConfig(filter="none"))  # fmt: skip


@pytest.fixture
def session(tmp_path):
    """Factory of sessions with one worker; ``ODD`` puts a stage of that behaviour in the place of selection."""
    made = []

    def make(odd: str = "", command: list[str] | None = None) -> Session:
        env = child_environment(PYTHON)
        if odd:
            (tmp_path / "odd.py").write_text(ODD)
            (tmp_path / "sitecustomize.py").write_text(
                "import sys, importlib.util\n"
                "class Odd:\n"
                "    def find_spec(self, name, path=None, target=None):\n"
                "        if name == 'npd_ascend.select.stage':\n"
                f"            return importlib.util.spec_from_file_location(name, {str(tmp_path / 'odd.py')!r})\n"
                "sys.meta_path.insert(0, Odd())\n"
            )
            env |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{env.get('PYTHONPATH', '')}", "ODD": odd}
        argv = command or [str(PYTHON), "-m", "npd_ascend.workers.process"]
        log = tmp_path / "logs" / "select-0.log"
        made.append(Session("select", lambda i, events: LocalWorker(i, argv, env, log, events)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def work(job, **settings) -> Work:
    return Work("select", job, "select", WorkerConfig(**settings))


def heard(monkeypatch) -> list[dict]:
    events: list[dict] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    return events


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:  # not ours to wait for: its signal may still be on the way
        time.sleep(0.02)
    return not alive(pid)


def test_a_job_is_done_and_its_events_come_through(job, session, monkeypatch):
    events = heard(monkeypatch)
    session().do(work(job))
    assert Dataset.open(job.out, "selection").rows == 4
    (end,) = [e for e in events if e["event"] == "end"]
    assert end["done"] == 4 and end["worker"] == 0


def test_what_a_stage_keeps_lives_from_job_to_job(job, session):
    one = session("count")
    (first,), (second,) = one.do(work(job)), one.do(work(job))
    assert (first[0], second[0]) == (1, 2) and first[1] == second[1]
    one.leave()
    ((jobs, pid),) = one.do(work(job))
    assert jobs == 1 and pid != first[1]


def test_user_error_and_damaged_shard_are_what_they_are(job, session):
    one = session()
    with pytest.raises(UserError, match="delta_ifdd"):
        one.do(work(job.model_copy(update={"settings": SelectConfig(filter="delta_ifdd")})))
    path = Dataset.open(job.rollouts, "rollouts").path(0)
    data = bytearray(path.read_bytes())
    data[-30] ^= 1  # in the footer, which every reader checks
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptShard) as e:
        one.do(work(job))
    assert (Path(e.value.dataset), e.value.index) == (job.rollouts, 0)


def test_by_hand(tmp_path, job):
    """The job file alone: exit codes, one line."""

    def run(job, code):
        write_job(tmp_path / "job.json", "select", job)
        done = subprocess.run([sys.executable, "-m", "npd_ascend.workers.process", str(tmp_path / "job.json")],
                              env=child_environment(PYTHON), capture_output=True, text=True)  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr.strip().splitlines()

    assert "select: end 4/4 samples" in run(job, 0)[-1]
    said = run(job.model_copy(update={"out": tmp_path / "b", "settings": SelectConfig(filter="delta_ifdd")}), 2)
    assert said[-1].startswith("error: ") and "delta_ifd" in said[-1] and not any("Traceback" in s for s in said)
    path = Dataset.open(job.rollouts, "rollouts").path(0)
    path.write_bytes(path.read_bytes()[:-9])
    assert run(job.model_copy(update={"out": tmp_path / "c"}), 3)[-1].startswith("error: ")


def test_a_hanging_worker_leaves_its_stacks_and_is_replaced(job, session, monkeypatch):
    events = heard(monkeypatch)
    one = session("hang")
    assert one.do(work(job, hang_seconds=1.5)) == ["hang"]
    (said,) = [e["text"] for e in events if e["event"] == "message"]
    assert "showed no progress for 1.5 s (select.hang_seconds)); starting another" in said
    log = (job.out.parent / "logs" / "select-0.log").read_text()
    assert "in stuck" in log and "in serve" in log  # Python's stack, by the worker itself
    assert "stacks of process" not in log or "sleep" in log or "ptrace" in log.lower()


def test_a_worker_that_is_stopped_is_replaced(job, session, monkeypatch):
    events = heard(monkeypatch)
    one = session()
    one.do(work(job))
    (worker,) = one._workers.values()
    os.kill(worker.pid, signal.SIGSTOP)
    again = job.model_copy(update={"out": job.out.with_name("again")})
    one.do(work(again, hang_seconds=1.0))
    assert Dataset.open(again.out, "selection").rows == 4 and gone(worker.pid)
    assert any("no progress for 1 s (select.hang_seconds)" in e.get("text", "") for e in events)


def test_an_owner_that_was_held_up_blames_no_worker(job, session, monkeypatch):
    """It has heard nothing for longer than ``hang_seconds``, since it did not listen."""
    said = []

    def hear(event):
        said.append(event["text"])
        time.sleep(2.5 if len(said) == 1 else 0)

    monkeypatch.setattr(progress, "_sink", hear)
    assert session("beat").do(work(job, hang_seconds=1.0)) == ["beat"]
    assert said == ["at work"] * 10


def test_a_dead_worker_is_replaced_until_there_are_too_many(job, session, monkeypatch):
    events = heard(monkeypatch)
    assert session("die").do(work(job)) == ["die"]
    assert any("select worker 0 failed (killed by SIGKILL); starting another" in e.get("text", "") for e in events)
    with pytest.raises(UserError, match=r"exit code 1\), failure 3 of .* select.max_failures is 2; see .*select-0.log"):
        session(command=["/bin/false"]).do(work(job, max_failures=2))


def test_an_error_that_lasts_is_not_tried_again_and_shows_its_cause(job, session):
    with pytest.raises(UserError, match=r"^select worker 0 failed \(KeyError: 'no such tensor'\); see ") as e:
        session("wrapped").do(work(job))
    assert "\n" not in str(e.value) and len(list(job.out.parent.glob("tried-*"))) == 1


def test_an_error_that_may_pass_is_tried_again_until_it_has_come_twice(job, session):
    with pytest.raises(UserError, match=r"EE1001: a device is away\), the same twice; see "):
        session("again").do(work(job))
    assert len(list(job.out.parent.glob("tried-*"))) == 2


def test_an_interpreter_without_the_package_is_one_line(job, session):
    with pytest.raises(UserError, match=r"select worker 0 failed \(ModuleNotFoundError: No module named 'nowhere'\)"):
        session(command=[sys.executable, "-c", "import nowhere"]).do(work(job))


def test_close_ends_a_job_from_another_thread(job, session):
    one = session("hang")
    threading.Timer(2.0, one.close).start()
    with pytest.raises(PoolClosed):
        one.do(work(job))


def test_nothing_outlives_a_killed_owner(tmp_path, job):
    """Neither a worker nor what it has started, and not when it is stopped either."""
    code = (
        "import sys, time; from pathlib import Path; import queue\n"
        "from npd_ascend.workers.local import LocalWorker; import os, signal\n"
        "argv = [sys.executable, '-m', 'npd_ascend.workers.process']; q = queue.Queue()\n"
        f"w = [LocalWorker(i, argv, os.environ, Path({str(tmp_path)!r}) / 'log', q) for i in (0, 1)]\n"
        "for _ in w: q.get()\n"
        "os.kill(w[1].pid, signal.SIGSTOP); print(*[x.pid for x in w], flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(p) for p in owner.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    owner.kill()
    owner.wait()
    assert all(map(gone, pids))


@pytest.mark.mindspore
def test_nothing_of_a_group_outlives_a_killed_owner(tmp_path):
    """Two ranks and their scheduler under msrun, and whatever msrun starts beside them."""
    log = tmp_path / "train-0.log"
    code = (
        "import os, queue, sys, time; from pathlib import Path\n"
        "from npd_ascend.ops.nodes import Nodes; from npd_ascend.pipeline.launch import Crew, command\n"
        "from npd_ascend.workers.local import LocalWorker; from npd_ascend.workers.system import child_environment\n"
        f"q, log, crew = queue.Queue(), Path({str(log)!r}), Crew('train', 'train', 'train', ranks=2)\n"
        "python = Path(sys.executable); argv = command(python, crew, Nodes(), log.with_suffix(''))\n"
        "worker = LocalWorker(0, argv, child_environment(python), log, q, group=True)\n"
        "ready = {q.get()[1]['rank'] for _ in range(3)}\n"
        "print(sorted(ready), flush=True)\n"
        "while True: worker.send({'stacks': True}); time.sleep(1)"  # what ranks write at once may be mixed
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "[-1, 0, 1]\n", log.read_text()
        deadline = time.monotonic() + 60
        while log.read_text(errors="replace").count("in serve") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        started = descendants(owner.pid)[1:]
    finally:
        owner.kill()
        owner.wait()
    assert log.read_text(errors="replace").count("in serve") >= 3  # they say what they do, in the group's own log
    assert len(started) == 4 and all(map(gone, started))


@pytest.mark.parametrize(("fault", "words"), [
    (OSError(28, "No space left on device", "x/y"), "disk is full"),
    (OSError(30, "Read-only file system", "x"), "cannot write"),
    (MemoryError(), "train.micro_batch"),
    (RuntimeError("Allocate memory failed: Memory not enough"), "train.micro_batch"),
])  # fmt: skip
def test_faults_of_the_surroundings_have_a_remedy(fault, words):
    assert words in advice(fault, "train")
    assert advice(ValueError("bug"), "train") is None


def test_causes():
    log = (
        "Traceback (most recent call last):\n  File x\nImportError: libascendcl.so: cannot open\n\nDuring handling\n"
        "(EngineCore pid=3) RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert last_error(log) == "ImportError: libascendcl.so: cannot open" and lasts(last_error(log))
    assert last_error("all is well\n") == "" and not lasts("") and not lasts("killed by SIGKILL")
    assert lasts("json.JSONDecodeError: x") is False and lasts("TypeError: x") and not lasts("RuntimeError: x")
    deep = RuntimeError("outer")
    deep.__cause__ = OSError("inner")
    assert cause(deep) == "OSError: inner" and cause(ValueError()) == "ValueError"


def test_memory_counts_what_a_process_has_started():
    """A process of 40 MB that starts one of 60."""
    child = "x = b'x' * 60_000_000; print(1, flush=True); input()"
    code = f"import subprocess, sys; x = b'x' * 40_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert 100e6 < resident_bytes(process.pid) < 300e6 and len(descendants(process.pid)) == 2
        finally:
            process.kill()
    assert resident_bytes(2**30) == 0


def test_commands_by_hand(tmp_path, job):
    worker = subprocess.Popen(
        [sys.executable, "-m", "npd_ascend.workers.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    commands = [{"module": "select", "kind": "SelectJob", "job": job.model_dump(mode="json")}, {"exit": True}]
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("".join(json.dumps(c) + "\n" for c in commands))
    worker.stdin.flush()
    events = [json.loads(line)["event"] for line in worker.stdout]
    worker.stdin.close()
    assert worker.wait(30) == 0
    assert events[0] == "ready" and events[-1] == "done" and {"begin", "end"} <= {*events}
