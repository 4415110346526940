"""The worked examples of docs/extending.md: each is one file, by ``module:function`` and as a file of the package."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from npd_ascend.bench.registry import BENCHMARKS, Chosen, find
from npd_ascend.config import stages
from npd_ascend.config.job import Device
from npd_ascend.config.schema import LossConfig, SelectConfig, TrainConfig
from npd_ascend.config.study import LiveConfig
from npd_ascend.errors import UserError
from npd_ascend.models.families import FAMILIES
from npd_ascend.models.initial import initial_checkpoint
from npd_ascend.models.spec import ModelSpec
from npd_ascend.monitors.feed import Feed
from npd_ascend.monitors.registry import MONITORS
from npd_ascend.objectives.registry import TERMS, TOKEN_WEIGHTS, Tokens, summands
from npd_ascend.pipeline.describe import describe
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.recipes import RECIPES
from npd_ascend.registry import Registry
from npd_ascend.select.decide import decide
from npd_ascend.select.registry import FILTERS, Scores
from npd_ascend.store.atomic import read_sealed
from npd_ascend.store.layout import RunDir
from npd_ascend.store.metrics import MetricsWriter
from npd_ascend.study.method import METHODS, Sample, changes
from npd_ascend.sync.registry import POLICIES, Moment, policy_of
from npd_ascend.tasks.registry import REWARDS, Attempt
from tests.faults.conftest import kit, make_kit, sound  # noqa: F401

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KINDS: dict[str, tuple[Registry, str]] = {
    "confident": (FILTERS, "confident:confident"),
    "contains": (REWARDS, "contains:contains"),
    "hellinger": (TERMS, "hellinger:hellinger"),
    "rare_first": (TOKEN_WEIGHTS, "rare_first:rare_first"),
    "first_of_two": (POLICIES, "first_of_two:FirstOfTwo"),
    "half_and_half": (METHODS, "half_and_half:HalfAndHalf"),
    "curves_as_csv": (MONITORS, "curves_as_csv:curves"),
    "capitals": (BENCHMARKS, "capitals:Capitals"),
    "look_first": (RECIPES, "look_first:look_first"),
    "seed_oss": (FAMILIES, "seed_oss"),
}
MODULE_FUNCTION = sorted(name for name, (_, text) in KINDS.items() if ":" in text)


@pytest.fixture(autouse=True)
def examples_in_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in KINDS:
        sys.modules.pop(name, None)


@pytest.fixture
def in_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Function that drops an example, a file or a folder, into a package, as a contribution would."""
    dropped = []

    def drop(name: str, package: str) -> None:
        source, folder = EXAMPLES / name, importlib.import_module(package)
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(f"{source}.py", tmp_path)
        monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
        dropped.append(f"{package}.{name}")

    yield drop
    for module in [m for m in sys.modules if m.startswith(tuple(dropped))]:
        del sys.modules[module]


@pytest.mark.parametrize("name", MODULE_FUNCTION)
def test_one_file_of_ones_own(name):
    registry, text = KINDS[name]
    assert registry.find(text) and name not in registry.names()


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"contains", "curves_as_csv"}))
def test_one_file_in_the_package(name, in_package):
    """Dropped into the folder of its kind, a file is a name, and no other file changes."""
    registry, _ = KINDS[name]
    in_package(name, registry.package)
    assert name in registry.names() and registry.find(name) is registry.all()[name]


def test_files_beside_the_test():
    """The table of docs/extending.md says one file for each kind, and names those that are here."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| `([^`]+)/` \| (\d) \| \[`(\w+)\.py`\]\(\.\./examples/(\w+)\.py\) \|", text)
    shown = {name: (folder, int(count)) for folder, count, name, link in rows if name == link}
    assert {name: shown[name] for name in KINDS} == {
        name: (registry.package.replace(".", "/"), 1) for name, (registry, _) in KINDS.items()
    }
    assert "| stage | `npd_ascend/` | 2: a row, a package | [`survey/`](../examples/survey) |" in text
    for _, text_of in KINDS.values():
        assert text_of in text


# ---- what each does


def test_the_benchmark(tmp_path):
    (benchmark,) = find(["capitals:Capitals"])
    assert isinstance(benchmark, Chosen)
    line = '{"country": "France", "cities": ["Lyon", "Paris"], "capital": "%s"}\n'
    (tmp_path / "capitals.jsonl").write_text(line % "Paris")
    (row,) = benchmark.rows(tmp_path)
    assert benchmark.asked(row) + benchmark.choices(row)[benchmark.right(row)] == "The capital of France is Paris"
    (tmp_path / "capitals.jsonl").write_text(line % "Rome")
    with pytest.raises(UserError, match="'Rome' is none of the cities"):
        benchmark.right(*benchmark.rows(tmp_path))


def test_the_filter():
    entropy = np.array([0.5, 2.0, 2.1, np.nan])
    nan = np.full(4, np.nan)
    scores = Scores(np.ones(4, np.int64), np.zeros(4, bool), *[nan] * 7, lambda name: entropy)
    chosen = FILTERS.find("confident:confident")
    made = decide(scores, chosen, SelectConfig(filter="confident:confident"))
    assert made.keep.tolist() == [True, True, False, False] and chosen.needs == {"scores_teacher"}
    assert [made.reasons[r] for r in made.reason] == ["kept", "kept", "unsure", "undefined"]
    assert decide(scores, chosen, SelectConfig(upper=1.0)).keep.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("response", "data", "right"),
    [("It is Paris, of course", None, True), ("Lyon", None, False), ("Lutetia", ["Lutetia"], True), ("", [" "], False)],
)
def test_the_checker(response, data, right):
    judge = REWARDS.find("contains:contains").judge
    assert judge(Attempt("Capital?", response, "paris"), data) is right
    assert not judge(Attempt("Capital?", response, None), None)


class Array(np.ndarray):
    """What a term may use of a tensor."""

    def exp(self):
        return np.exp(self)


def test_the_loss_term():
    _, chosen = summands(LossConfig(divergence="hellinger:hellinger", topk_norm="tail"))
    p, q = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2]])
    found = chosen.term.function(np.log(p).view(Array), np.log(q).view(Array))
    assert chosen.scale == 0.9 and chosen.term.is_divergence
    np.testing.assert_allclose(found, ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(1) / 2, atol=1e-12)
    with pytest.raises(UserError, match="tail or both"):
        summands(LossConfig(divergence="hellinger:hellinger", topk_norm="teacher"))


def test_the_token_weight():
    chosen = TOKEN_WEIGHTS.find("rare_first:rare_first")
    samples = [Tokens(len(x), rollout_logprobs=-np.array(x, np.float32)) for x in ([1, 2, 3], [4, 5])]
    assert chosen.stats is not None and chosen.stats(iter(samples)) == -3
    np.testing.assert_allclose(chosen.weight(samples[0], -2.5), np.array([1, 1, 2]) * 3 / 4)


def test_the_monitor(tmp_path):
    metrics = MetricsWriter(tmp_path / "metrics.jsonl")
    for step in (1, 2):
        metrics.log("train", step=step, generation=0, loss=1 / step)
        feed = Feed("curves_as_csv:curves", tmp_path, {})  # of a run that is started twice
        feed.start()
        feed.stop()
    (file,) = tmp_path.glob("monitors/*/*.csv")
    assert file.read_text().splitlines() == ["1,loss/total,1.0", "2,loss/total,0.5"]


def test_the_sync_policy_is_asked_by_dry_run_plan_and_training(kit):  # noqa: F811
    for key, value in {
        "sync.policy": "first_of_two:FirstOfTwo",
        "sync.refreshes": 1,
        "sync.epsilon": 0.3,
        "train.epochs": 4,
    }.items():
        kit.set(key, value)
    config = kit.config()
    told = describe(config)
    lines = [line for line in told.splitlines() if line.strip().startswith("g001")]
    assert lines and all("(when the lag reaches sync.epsilon or the answers are old)" in line for line in lines)
    assert "at most 2 generation(s)" in told
    policy = policy_of(config)
    asked = [policy.refresh(Moment(0, 0.0, at, lag, None)) for at, lag in ((1.9, 0.2), (1.9, 0.3), (2.0, None))]
    assert [a and a.reason for a in asked] == [None, "lag", "age"]


def test_the_method():
    class Data:
        def student(self, prompts):
            return [Sample(i, np.zeros(1), np.zeros(1), "student") for i in prompts]

        def reference(self, prompts):
            return [Sample(i, np.zeros(1), np.zeros(1), "reference") for i in prompts]

    name = "half_and_half:HalfAndHalf"
    made = METHODS.find(name)(LiveConfig(), TrainConfig()).samples(range(5), Data())
    assert [s.origin for s in made] == ["student"] * 2 + ["reference"] * 3 and [s.index for s in made] == list(range(5))
    assert changes(name)["train.loss.divergence"] == "jsd:0.1" and changes(name)["sync.refreshes"] == 0


def test_the_recipe(kit):  # noqa: F811
    """It asks the models that the filter needs, and trains nothing."""
    for name, asked in {
        "none": [],
        "fire": ["annotate_teacher"],
        "delta_ifd": ["annotate_teacher", "annotate_student"],
    }.items():
        kit.set("run.recipe", "look_first:look_first")
        kit.set("select.filter", name)
        lines = describe(kit.config()).split("# stages")[1].split("# cost")[0].splitlines()
        assert [line.split()[1] for line in lines if line.strip().startswith("g000")] == ["rollout", *asked, "select"]


SEED = {
    "model_type": "seed_oss",
    "architectures": ["SeedOssForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e7,
    "hidden_act": "silu",
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def test_the_model_family(in_package, tmp_path):
    with pytest.raises(UserError, match="model_type 'seed_oss' is not supported"):
        ModelSpec.from_config(SEED, {}, "config.json")
    in_package("seed_oss", "npd_ascend.models.families")
    spec = initial_checkpoint(tmp_path / "hf", SEED)
    assert (spec.qkv_bias, spec.o_bias, spec.qk_norm, spec.head_dim) == (True, False, False, 16)
    assert ModelSpec.from_folder(tmp_path / "hf") == spec
    bare = {k: v for k, v in SEED.items() if k not in ("attention_bias", "attention_out_bias", "head_dim")}
    other = ModelSpec.from_config(bare | {"attention_out_bias": True}, {}, "config.json")
    assert (other.qkv_bias, other.o_bias, other.head_dim) == (True, True, 128)


@pytest.mark.slow
@pytest.mark.mindspore
@pytest.mark.vllm
def test_the_model_family_gives_the_logits_of_transformers(in_package, tmp_path):
    pytest.importorskip("mindspore")
    from tests.models.test_parity import ROLLOUT, logits_of_transformers, network, packed_logits, sequences

    if not ROLLOUT.is_file():
        pytest.skip("no rollout environment")
    in_package("seed_oss", "npd_ascend.models.families")
    initial_checkpoint(tmp_path / "hf", SEED, std=0.12, norm_std=0.1, bias_std=0.3)
    theirs = logits_of_transformers(tmp_path, "hf")["hf"]
    for i, ours in enumerate(packed_logits(network(tmp_path / "hf"), sequences())):
        assert theirs[f"s{i}"].std() > 0.3
        np.testing.assert_allclose(ours, theirs[f"s{i}"], rtol=0, atol=1e-4)


def test_the_stage(kit, in_package, monkeypatch):  # noqa: F811
    """The row as docs/extending.md shows it, and the package beside those of the other stages."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    row = eval(text.split("```python\nStage(")[1].split("```")[0].join(("stages.Stage(", "")), {"stages": stages})
    monkeypatch.setitem(stages.STAGES, row.name, row)
    in_package("survey", "npd_ascend")
    kit.data()
    run = RunDir(kit.run)
    shutil.copytree(kit.at("rollouts"), run.data("rollouts", 0))

    step = StepBuilder(kit.config(), run, Device()).step("survey", 0)
    assert step.done_file == run.root / "generations" / "000" / "survey.json" and not step.complete
    importlib.import_module(f"npd_ascend.{row.module}.stage").run(step.job)
    assert step.complete
    found = read_sealed(step.done_file) or {}
    assert {k: found[k] for k in ("answers", "mean_tokens", "truncated", "loops")} == {
        "answers": 8,
        "mean_tokens": 5,
        "truncated": 0,
        "loops": 0,
    }
    assert StepBuilder(kit.config(), run, Device()).step("survey", 0).complete, "a resumed run finds it"
