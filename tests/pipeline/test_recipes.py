"""One recipe drives runs, dry runs, single stages and the stored arms of a study; no engine."""

import ast
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest

from npd_ascend.config import stages
from npd_ascend.config.job import Device, Job
from npd_ascend.config.marks import SPEED, Holds
from npd_ascend.config.schema import Config, EvaluateConfig, Section
from npd_ascend.config.stages import STAGES
from npd_ascend.config.study import Arm, LiveConfig
from npd_ascend.errors import UserError
from npd_ascend.pipeline.checks import check_run_dir
from npd_ascend.pipeline.describe import describe
from npd_ascend.pipeline.executor import Executor
from npd_ascend.pipeline.runner import ShardLost
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.recipes import RECIPES, find, npd
from npd_ascend.store.atomic import write_json
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import SCHEMA_VERSION
from npd_ascend.store.layout import RunDir
from npd_ascend.store.schemas import SCHEMAS
from npd_ascend.workers.jobfile import read_job, write_job
from tests.faults.conftest import kit, make_kit, sound  # noqa: F401

SHORT = """
WALKED = []

def recipe(config, run):
    WALKED.append(type(run).__name__)
    run("prepare")
    run("rollout", 0)
    run("select", 0)
    run("pack", 0)
    run.refresh(0)
"""


@pytest.fixture
def short(kit, tmp_path, monkeypatch):  # noqa: F811
    """A configuration with a recipe of the user's own that needs no engine, and what has walked it."""
    (tmp_path / "own_recipes.py").write_text(SHORT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_recipes", raising=False)
    for key, value in {
        "run.recipe": "own_recipes:recipe",
        "data.response_field": "response",
        "select.filter": "none",
        "rollout.source": "reference",
        "sync.refreshes": 0,
        "train.loss.kd_weight": 0,
    }.items():
        kit.set(key, value)
    import own_recipes

    return kit, own_recipes.WALKED


def stages_of(text: str) -> list[list[str]]:
    """Lines of a dry run's stages as words."""
    return [line.split() for line in text.split("# stages")[1].split("# cost")[0].splitlines()[1:] if line.strip()]


class TrainHooks:
    """What an arm asks of its workbench before training."""

    def __init__(self):
        self.watch, self.scorer = None, None


def arm_of(config, root: Path):
    from npd_ascend.study.clock import Clock
    from npd_ascend.study.run import _Run

    arm = Arm("task", "group", "arm", 0, "npd", config, LiveConfig(), 1, False, False, None, 8)
    run = _Run(arm, root, TrainHooks(), root / "scratch", Clock())
    run.prompts = [SimpleNamespace()] * 8
    return run


def test_all_four_walk_the_recipe_of_the_configuration(kit, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("mindspore")
    walked, real = [], npd.recipe

    def noted(config, run):
        walked.append(type(run).__name__)
        if type(run).__name__ in ("Outline", "Passes"):
            real(config, run)

    monkeypatch.setattr(RECIPES, "find", lambda name: noted)
    config = kit.config()
    describe(config)
    Executor(config).run()
    Executor(config).run("pack")
    arm_of(config, tmp_path / "study")._stored()
    assert "Passes" in walked  # what the plan counts, for the cost and for the room on the disk
    assert [w for w in walked if w != "Passes"] == ["Outline", "Executor", "OneStage", "_Run"]


def test_a_recipe_of_ones_own(short, tmp_path):
    pytest.importorskip("mindspore")
    kit, walked = short  # noqa: F811
    config, run = kit.config(), RunDir(kit.run)
    assert stages_of(describe(config)) == [
        ["prepare", "to", "do"],
        ["g000", "rollout", "to", "do"],
        ["g000", "select", "to", "do"],
        ["g000", "pack", "to", "do"],
    ]
    assert not run.root.exists()

    with pytest.raises(UserError, match="prompts/train: no finished prompts there; run the stage that makes it first"):
        Executor(config).run("rollout")
    for stage in ("prepare", "rollout", "select"):
        Executor(config).run(stage)
    assert Dataset.open(run.generation(0).selection, "selection").extra["kept"] == 8
    assert not run.generation(0).packs.exists()

    arm = arm_of(
        config.model_copy(update={"run": config.run.model_copy(update={"dir": tmp_path / "arm"})}), tmp_path / "study"
    )
    arm._stored()
    assert Dataset.open(arm.dir.generation(0).packs, "packs").extra["samples"] == 8
    # What a study has made once is there for its other arms.
    other = arm_of(
        config.model_copy(update={"run": config.run.model_copy(update={"dir": tmp_path / "other"})}), tmp_path / "study"
    )
    other._do = lambda step: pytest.fail(step.name) if step.stage.shared else type(other)._do(other, step)
    other._stored()
    a, b = (r.dir.generation(0).rollouts / "shard-00000.parquet" for r in (arm, other))
    assert a.stat().st_ino == b.stat().st_ino

    assert [line[-1] for line in stages_of(describe(config))] == ["done"] * 3 + ["do"]
    assert set(walked) == {"Outline", "Passes", "OneStage", "_Run"}


def test_a_refresh_repeats_the_stages_of_a_generation(kit):  # noqa: F811
    """Order and number of stages, as the dry run of a fresh directory says them."""
    for key, value in {"sync.refreshes": 2, "evaluate.prompts": [str(kit.prompts)]}.items():
        kit.set(key, value)
    lines = [" ".join(words[:-2]) for words in stages_of(describe(kit.config()))]
    one = ["rollout", "annotate_teacher", "annotate_student", "select", "pack", "train"]
    expected = ["prepare", "prepare_eval"]
    for g, name in enumerate(("start", "refresh 1", "refresh 2")):
        expected += [f"g{g:03d} rollout", f"g{g:03d} evaluate_rollout {name}", f"g{g:03d} evaluate {name}"]
        expected += [f"g{g:03d} {s}" for s in one[1:]]
    assert lines == [*expected, "g003 evaluate_rollout end", "g003 evaluate end"]


@pytest.mark.parametrize(
    ("chosen", "kd", "asked"),
    [
        ("none", 0.0, set()),
        ("none", 0.9, {"teacher"}),
        ("fire", 0.0, {"teacher"}),
        ("student_ifd", 0.0, {"student"}),
        ("student_ifd", 0.9, {"teacher", "student"}),
        ("delta_ifd", 0.0, {"teacher", "student"}),
    ],
)
def test_only_models_that_are_needed_annotate(kit, chosen, kd, asked):  # noqa: F811
    kit.set("select.filter", chosen)
    kit.set("train.loss.kd_weight", kd)
    kit.set("sync.refreshes", 0)
    found = {words[1] for words in stages_of(describe(kit.config())) if words[0] == "g000"}
    assert {s for s in found if s.startswith("annotate")} == {f"annotate_{m}" for m in asked}


def test_recipes_are_short_and_know_neither_engine_nor_store():
    for path in Path(npd.__file__).parent.glob("*.py"):
        if path.name == "__init__.py":
            continue
        assert len(path.read_text().splitlines()) <= 60, path
        imported = {n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        ours = {m for m in imported if m.startswith("npd_ascend")}
        assert ours <= {"npd_ascend.config.schema", "npd_ascend.errors", "npd_ascend.recipes"}, path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ndp", "did you mean npd?"),
        ("nowhere:recipe", "there is no module 'nowhere'"),
        ("npd_ascend.recipes.npd:recipes", "has no 'recipes'; did you mean recipe?"),
    ],
)
def test_unknown_recipes(name, words):
    with pytest.raises(UserError, match="run.recipe.*" + words.replace("?", r"\?")):
        find(name)


def test_every_stage_is_what_its_row_says():
    from importlib.util import find_spec

    from npd_ascend.config.stages import DATA, QUANTITIES
    from npd_ascend.registry import load

    for row in STAGES.values():
        assert find_spec(f"npd_ascend.{row.module}.stage"), row.name
        fields = row.job.model_fields
        assert {f for f, data in row.reads.items() if data in DATA} <= set(fields), row.name
        assert set(row.reads.values()) <= {*DATA, "snapshot", "trained"} and set(row.writes) <= set(DATA), row.name
        assert row.writes or "out" in fields
        assert not row.needs or callable(load(row.needs, row.name))
    assert {q.target for q in QUANTITIES.values()} <= set(STAGES["annotate_teacher"].job.model_fields)
    assert np.unique([row.title for row in STAGES.values()]).size == len(STAGES)


class GradeJob(Job):
    """What a stage of one's own is told."""

    out: Path
    rollouts: Annotated[Path, Holds("rollouts")]
    settings: EvaluateConfig
    seed: int
    shards_at_once: Annotated[int, SPEED] = 4


@pytest.fixture
def grade(kit, monkeypatch):  # noqa: F811
    """A stage that the package does not have: a row with its dataset, and a package with its job."""
    monkeypatch.setitem(sys.modules, "npd_ascend.grade.job", SimpleNamespace(GradeJob=GradeJob))
    monkeypatch.setitem(
        stages.DATA, "grades", stages.Data("grades", "scores", "generations/{generation:03d}/grades", "rollouts")
    )
    monkeypatch.setitem(
        STAGES,
        "grade",
        stages.Stage(
            "grade",
            "grade",
            "Grades the answers",
            "grade",
            "GradeJob",
            reads={"rollouts": "rollouts"},
            writes=("grades",),
        ),
    )
    kit.data()
    run = RunDir(kit.run)
    shutil.copytree(kit.at("rollouts"), run.data("rollouts", 0))
    return StepBuilder(kit.config(), run, Device()), run


def test_a_stage_is_a_row(grade, kit):  # noqa: F811
    steps, run = grade
    step = steps.step("grade", 0)
    job = step.job
    assert isinstance(job, GradeJob) and (job.seed, job.settings) == (0, steps.config.evaluate)
    assert (job.rollouts, job.out) == (run.data("rollouts", 0), run.root / "generations" / "000" / "grades")
    assert step.name == "g000-grade" and not step.complete and step.outputs[0].fingerprint == job.fingerprint
    write_job(kit.root / "job.json", "grade", job)
    assert read_job(kit.root / "job.json") == (STAGES["grade"], job)
    assert stages.named("grade") == [STAGES["grade"]] and stages.title("grade") == "grade"

    kit.set("evaluate.checker", "number")
    assert StepBuilder(kit.config(), run, Device()).step("grade", 0).job.fingerprint != job.fingerprint
    changed = job.model_copy(update={"shards_at_once": 9, "out": Path("elsewhere")})
    assert steps.fingerprints.of(changed, "grades") == [job.fingerprint]
    with pytest.raises(UserError, match="generations/001/rollouts: no finished rollouts there"):
        steps.step("grade", 1)


def test_what_is_made_of_a_damaged_shard_goes_with_it(grade):
    steps, run = grade
    executor = Executor(steps.config)
    follow = {
        "topk",
        "scores_teacher",
        "unconditioned_teacher",
        "scores_student",
        "unconditioned_student",
        "selection",
        "grades",
    }
    for g in (0, 1):
        for name in (*follow, "packs", "rollouts"):
            data = Dataset(run.data(name, g), stages.DATA[name].kind, "f")
            for shard in (0, 1):
                if data.kind in SCHEMAS:
                    data.write_table(shard, SCHEMAS[data.kind].empty_table())
                else:
                    data.write(shard, 0, lambda f: f.write(b"x"))
            data.finish(2)
    before = {p for p in run.root.rglob("shard-*.*")}

    executor._discard(ShardLost(str(run.data("scores_teacher", 1)), 0, "damaged"))
    gone = before - set(run.root.rglob("shard-*.*"))
    assert {(p.parent.name, p.stem) for p in gone} == {("scores_teacher", "shard-00000")}
    executor._discard(ShardLost(str(run.data("rollouts", 0)), 1, "damaged"))
    gone = before - set((run.root / "generations" / "000").rglob("shard-*.*"))
    gone = {p for p in gone if p.parent.parent.name == "000"}
    assert {(p.parent.name, p.stem) for p in gone} == {(name, "shard-00001") for name in follow | {"rollouts"}}
    with pytest.raises(UserError, match="does not belong to this run"):
        executor._discard(ShardLost("/elsewhere/rollouts", 0, "damaged"))


def speed(kind: type[Section], at: str = "") -> set[str]:
    """Marked settings of a section and below."""
    out: set[str] = set()
    for name, field in kind.model_fields.items():
        key, inner = f"{at}.{name}" if at else name, field.annotation
        if SPEED in field.metadata:
            out.add(key)
        elif isinstance(inner, type) and issubclass(inner, Section):
            out |= speed(inner, key)
    return out


def test_settings_that_change_speed_or_place_alone(kit):  # noqa: F811
    assert speed(Config) == {
        "run.dir",
        "device",
        "report",
        "select.warn_keep_below",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "reward.workers",
        *(f"annotate.{k}" for k in ("workers", "tensor_parallel")),
        *(
            f"{section}.{k}"
            for section in ("rollout", "annotate", "train")
            for k in ("keep_alive", "max_failures", "hang_seconds", "start_seconds")
        ),
        *(
            f"rollout.{k}"
            for k in ("workers", "tensor_parallel", "max_num_seqs", "kv_cache_gib", "memory_fraction", "enforce_eager")
        ),
    }
    run = RunDir(kit.run)
    run.lock()
    check_run_dir(kit.config(), run, redo=False)
    kit.set("rollout.workers", 3)
    kit.set("device.count", 1)
    check_run_dir(kit.config(), run, redo=False)
    kit.set("annotate.k", 2)
    with pytest.raises(UserError, match="annotate.k = 3, now 2"):
        check_run_dir(kit.config(), run, redo=False)
    run.unlock()


def test_a_run_directory_of_an_older_layout_gets_one_line(kit):  # noqa: F811
    run = RunDir(kit.run)
    run.root.mkdir()
    write_json(run.state, {"schema": SCHEMA_VERSION - 1, "status": "stopped"})
    with pytest.raises(UserError, match=f"made by format version {SCHEMA_VERSION - 1}, .*use a new run.dir"):
        Executor(kit.config()).run()
