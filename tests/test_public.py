"""The Python interface: what it offers, what importing it costs, and what it reads of a run."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import npd_ascend
from npd_ascend import MachineError, UserError, build_report, dry_run, load_config, open_run, run
from npd_ascend.out_of_memory import as_machine_error
from npd_ascend.pipeline import executor
from npd_ascend.store.dataset import Dataset
from tests.report.conftest import PER_SHARD, SHARDS, K, V, fabricate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A run as the store's writers make it, and its figures; not to be changed."""
    return fabricate(tmp_path_factory.mktemp("public") / "run", seed=3)


def test_importing_loads_nothing():
    """0.1 s is what the interpreter's own modules may take; a library would take more and be in the list."""
    code = (
        "import sys; before = set(sys.modules); import npd_ascend; "
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert set(done.stdout.split()) <= {"npd_ascend", *sys.stdlib_module_names}


def test_every_public_name_is_there_and_documented():
    modules = {m.name for m in pkgutil.iter_modules(npd_ascend.__path__)}
    assert not modules & set(npd_ascend.__all__), "a function would be hidden by the module once that is imported"
    for name in npd_ascend.__all__:
        thing = getattr(npd_ascend, name)
        assert name in dir(npd_ascend) and (name == "__version__" or inspect.getdoc(thing))
        if inspect.isfunction(thing):
            text, arguments = inspect.getdoc(thing) or "", inspect.signature(thing)
            assert "Raises:" in text and arguments.return_annotation is not inspect.Signature.empty
            assert all(f"{a}:" in text for a in arguments.parameters) or len(arguments.parameters) == 1, name
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        npd_ascend.distil  # noqa: B018


def test_the_version_has_one_source():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text and 'attr = "npd_ascend.__version__"' in text
    assert f"## {npd_ascend.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# ---- runs


def test_dry_run_and_what_it_refuses(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "g001 train" in dry_run(load_config("configs/mini.yaml")) and "# cost" in dry_run("configs/mini.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        dry_run("configs/none.yaml")
    with pytest.raises(UserError, match="there is no such stage; known: prepare"):
        run("configs/mini.yaml", stage="distil")


def test_a_run_in_a_thread_leaves_signals_alone():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(executor._signals()))
    thread.start()
    thread.join()
    assert seen == [()] and len(executor._signals()) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/data/x"), "the disk is full \\(/data/x\\)"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "no further thread"),
    ],
)
def test_what_the_machine_lacks_is_a_machine_error(error, said):
    with pytest.raises(MachineError, match=said) as e, as_machine_error():
        raise error
    assert e.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(2, "No such file", "x"), RuntimeError("a fault"), UserError("yours")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as e, as_machine_error():
        raise error
    assert e.value is error


# ---- reading


def test_what_a_run_says_of_itself(made, tmp_path):
    found = open_run(made.root)
    assert found.config == made.config and found.state["status"] == "finished" and "2 generations" in repr(found)
    assert len(found.metrics("train")) == 120 and len(found.metrics()) > 140 and found.export is None
    assert found.prompts(["answer"])["answer"].to_pylist() == [str(i % 9) for i in range(SHARDS * PER_SHARD)]
    with pytest.raises(UserError, match="no run there"):
        open_run(tmp_path)


def test_tables_of_a_generation(made):
    for generation, facts in zip(open_run(made.root).generations, made.generations, strict=True):
        assert generation.datasets() == [
            "rollouts",
            "topk",
            "scores_teacher",
            "unconditioned_teacher",
            "scores_student",
            "unconditioned_student",
            "selection",
            "packs",
        ]
        table = generation.table("selection", ["delta_ifd", "keep"])
        assert table.column_names == ["delta_ifd", "keep"]
        np.testing.assert_array_equal(table["delta_ifd"].to_numpy(), facts.delta)
        assert table["keep"].to_pylist() == facts.kept.tolist()
        assert generation.table("rollouts")["tokens"].to_pylist() == facts.lengths.tolist()


def test_topk_of_some_samples_in_any_order(made):
    generation, facts = open_run(made.root).generations[1], made.generations[1]
    whole, at = generation.topk()
    assert whole.ids.shape == (facts.lengths.sum(), K) and whole.ids.max() < V
    np.testing.assert_array_equal(np.diff(at), facts.lengths)
    order = [PER_SHARD + 7, 0, 3, PER_SHARD - 1]
    some, offsets = generation.topk(order)
    for place, ordinal in enumerate(order):
        mine, wanted = slice(*offsets[place : place + 2]), slice(*at[ordinal : ordinal + 2])
        for name in ("ids", "logprobs", "logz", "sampled", "entropy"):
            np.testing.assert_array_equal(getattr(some, name)[mine], getattr(whole, name)[wanted])
    nothing, offsets = generation.topk([])
    assert len(nothing) == 0 and offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda g: g.table("answers"), "no dataset 'answers'; it has drawn, rollouts, rewards, topk"),
        (lambda g: g.table("topk"), "read it with topk"),
        (lambda g: g.table("rollouts", ["delta_ifd"]), "no column 'delta_ifd'; it has sample_id"),
        (lambda g: g.topk([0, 400]), "has the samples 0 to 399, asked for 0 to 400"),
        (lambda g: g.topk([-1]), "asked for -1 to -1"),
    ],
)
def test_what_is_not_there(made, ask, said):
    with pytest.raises(UserError, match=said):
        ask(open_run(made.root).generations[0])


def test_a_run_that_has_only_begun(tmp_path):
    facts = fabricate(tmp_path / "run", generations=1, finished=False)
    found = open_run(facts.root)
    Dataset.open(found.paths.generation(0).selection, "selection").discard(1)
    (generation,) = found.generations
    assert "selection" not in generation.datasets() and found.evaluations() == {}
    with pytest.raises(UserError, match="no finished selection"):
        generation.table("selection")
    assert build_report(found.root).is_file()
