"""Every shipped configuration is planned, outlined and cut into graphs where models, prompts and NPUs are missing."""

from pathlib import Path

import pytest

from npd_ascend.config import load_config
from npd_ascend.config.study import load_study
from npd_ascend.errors import UserError
from npd_ascend.models.shapes import known_shapes, planned_spec
from npd_ascend.ops.ascend.graphs import graphs
from npd_ascend.ops.plan import compare_loops, estimate, estimate_run, render
from npd_ascend.pipeline.describe import describe
from npd_ascend.study.conduct import describe as describe_study

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = [p for p in FILES if p.stem.startswith("study")]
RUNS = [p for p in FILES if p not in STUDIES]
BUILT_IN = "not there, so the built-in shape of its name is used: "


def absent(config):
    return [m for m in (config.models.student, config.models.teacher) if not m.exists()]


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    """Its own small models are found there, and no others."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_plan(path):
    config = load_config(path)
    ascend = config.device.target == "ascend"
    text = render(estimate_run(config) if ascend else estimate(config, assume=True))
    named = [line for line in text.splitlines() if BUILT_IN in line]
    assert len(named) == bool(absent(config)) and all(str(m) in line for line in named for m in absent(config))
    assert not any(f"{stage} does not fit" in text for stage in ("train", "annotate_teacher", "annotate_student"))
    assert text.startswith("  stage ") and "in all:" in text and len(text) < 5000


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_dry_run(path, tmp_path):
    config = load_config(path, [f"run.dir={tmp_path / 'run'}"])
    text = describe(config)
    assert "g000 rollout" in text and "g000 train" in text and "in all:" in text
    assert text.count(BUILT_IN) == 2 * bool(absent(config))  # of the models, and of the plan
    assert ("no NPU is visible here" in text) == (config.device.target == "ascend")
    assert not config.run.dir.exists()


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_graphs_of_the_compiler(path):
    config = load_config(path)
    found = graphs(config)
    assert {g.stage for g in found} >= ({"train"} if config.run.recipe == "grpo" else {"annotate teacher", "train"})
    assert {g.built_in for g in found} == {bool(absent(config))}


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_study(path):
    assert "to run" in describe_study(load_study(path))


def test_comparison_says_it_too():
    text = compare_loops(load_config(ROOT / "configs" / "openpangu_1b_from_7b.yaml"), ["gkd"])
    assert BUILT_IN in text.splitlines()[0] and "100,000 prompts of 300 tokens assumed" in text


def test_an_unknown_model_is_refused():
    config = load_config(ROOT / "configs" / "7b_from_72b.yaml", ["models.teacher=/models/mine"])
    for ask in (estimate_run, describe):
        with pytest.raises(UserError, match="/models/mine: no config.json there, and mine is not one of"):
            ask(config)


def test_a_cut_that_does_not_come_out_even_is_refused():
    config = load_config(ROOT / "configs" / "7b_from_72b.yaml", ["annotate.tensor_parallel=3"])
    with pytest.raises(UserError, match="annotate.tensor_parallel"):
        describe(config)


def test_shapes_of_the_models_that_tools_make():
    """As docs/smollm2.md and tools/init_checkpoint.py have them."""
    sizes = {name: planned_spec(Path("runs") / name).parameters for name in known_shapes() if "/" in name}
    assert sizes["smollm2_assets/teacher"] == 134_515_008 and sizes["smollm2_assets/student"] == 81_413_568
    assert len(sizes) == 4
