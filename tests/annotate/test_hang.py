"""A worker that hangs in the middle of annotation: its stacks, another one, and one line when there were too many."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mindspore")

from npd_ascend import progress  # noqa: E402
from npd_ascend.annotate.job import AnnotateJob  # noqa: E402
from npd_ascend.annotate.stage import run  # noqa: E402
from npd_ascend.config.job import Target  # noqa: E402
from npd_ascend.config.schema import AnnotateConfig  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.store.dataset import Dataset  # noqa: E402
from npd_ascend.workers.local import LocalWorker  # noqa: E402
from npd_ascend.workers.session import Session, Work  # noqa: E402
from npd_ascend.workers.system import child_environment  # noqa: E402

pytestmark = [pytest.mark.mindspore, pytest.mark.slow]
PYTHON = Path(sys.executable)
HOOK = """
import importlib.util, os, sys, time
from pathlib import Path

MARKS = Path(__file__).parent

def wrap(module):
    real, calls = module.Scorer.score, []

    def score(self, *args):
        calls.append(args)
        if len(calls) == 2 and len(list(MARKS.glob("hung-*"))) < 2:
            (MARKS / f"hung-{os.getpid()}").touch()
            stuck()
        return real(self, *args)

    module.Scorer.score = score

def stuck():
    time.sleep(600)

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name != "npd_ascend.annotate.prefill":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), wrap(module))
        return spec

sys.meta_path.insert(0, Hook())
"""


def test_a_worker_that_hangs_between_two_shards(tmp_path, model, data, monkeypatch):
    """Two processes hang behind their first shard; the third does the rest."""
    prompts, rollouts, _ = data(shards=4)

    def job(name):
        return AnnotateJob(
            fingerprint="",
            prompts=prompts,
            rollouts=rollouts,
            model=model,
            role="teacher",
            vocabulary=150,
            scores=Target(folder=tmp_path / name, fingerprint="s"),
            compiled=tmp_path / "compiled",
            settings=AnnotateConfig(
                row_length=64, micro_batch=2, vocab_chunk_rows=40, hang_seconds=2.0, start_seconds=300.0, max_failures=1
            ),
        )

    run(job("undisturbed"))
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}:{':'.join(p for p in sys.path if p)}")
    events: list[dict] = []
    monkeypatch.setattr(progress, "_sink", events.append)
    log, one = tmp_path / "logs" / "annotate-0.log", job("one")
    argv = [str(PYTHON), "-m", "npd_ascend.workers.process"]
    out = Dataset(one.scores.folder, "scores", "s")
    with Session("annotate", lambda i, q: LocalWorker(i, argv, child_environment(PYTHON), log, q)) as session:
        work = Work("annotate", one, "annotate", one.settings, one.shares())
        with pytest.raises(UserError) as e:
            session.do(work)
        why = "annotate worker 0 failed (showed no progress for 2 s (annotate.hang_seconds))"
        assert str(e.value) == f"{why}, failure 2 of this job and annotate.max_failures is 1; see {log}"
        assert [m["text"] for m in events if m["event"] == "message"] == [f"{why}; starting another"]
        assert out.missing(4) == [2, 3] and not out.complete
        said = log.read_text()
        for pid in (int(p.name.split("-")[1]) for p in (tmp_path / "hook").glob("hung-*")):
            assert f"stacks of process {pid}, by " in said
        assert said.count("in stuck") >= 2 and "in shard" in said  # Python's, down to the stage
        assert "nanosleep" in said or "ptrace" in said.lower()  # native, unless the kernel forbids it
        session.do(work)
    assert not list(one.scores.folder.glob(".tmp-*"))
    plain = Dataset.open(job("undisturbed").scores.folder, "scores")
    assert out.complete and [out.read_bytes(i) for i in range(4)] == [plain.read_bytes(i) for i in range(4)]
