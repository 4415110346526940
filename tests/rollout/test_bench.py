"""A benchmarking process on a small model: lm-eval, workers, files; likelihoods against lm-eval's own model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("vllm")
lm_eval = pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from zoo import tokenizers_of  # noqa: E402

from npd_ascend.bench import stage  # noqa: E402
from npd_ascend.bench.harness import Session  # noqa: E402
from npd_ascend.bench.job import BenchJob  # noqa: E402
from npd_ascend.bench.registry import find  # noqa: E402
from npd_ascend.bench.results import Result, read_result, read_samples  # noqa: E402
from npd_ascend.config.job import Device  # noqa: E402
from npd_ascend.config.schema import DataConfig, RolloutConfig  # noqa: E402
from npd_ascend.data.tokenizer import load_tokenizer  # noqa: E402
from npd_ascend.errors import UserError  # noqa: E402
from npd_ascend.rollout.engine import set_environment  # noqa: E402
from npd_ascend.rollout.pool import RolloutPool  # noqa: E402
from tests.bench.conftest import make_folder  # noqa: E402, F401
from tests.rollout.families import write  # noqa: E402

set_environment("cpu")  # read by torch when it is imported


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a byte-level tokenizer that has " A" to " D" as tokens, and no chat template."""
    folder = tmp_path_factory.mktemp("model")
    corpus = [*tokenizers_of.CORPUS, *(f"Answer: {letter}" for letter in "ABCD" for _ in range(50))]
    tokenizer = tokenizers_of.byte_level(400, tokenizers_of.QWEN_SPECIALS, corpus)
    write(folder, "llama", True, seed=0, vocab=tokenizer.get_vocab_size())
    end = tokenizers_of.QWEN_SPECIALS[0]
    tokenizers_of.save(tokenizer, folder, tokenizer_class="PreTrainedTokenizerFast", eos_token=end, pad_token=end)
    config = json.loads((folder / "config.json").read_text())
    config |= {"max_position_embeddings": 2048, "eos_token_id": tokenizer.token_to_id(end)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory):
    with RolloutPool(Path(sys.executable), 1, tmp_path_factory.mktemp("logs")) as pool:
        yield pool


@pytest.fixture
def make_bench(tmp_path: Path, model: Path) -> Callable[..., BenchJob]:
    """``make_bench(folder, **changes)``: a job on the random model."""

    def make(folder: Path, **changes: object) -> BenchJob:
        fields = {
            "out": tmp_path / "out",
            "model": model,
            "checkpoint_id": "random",
            "tokenizer": model,
            "teacher": model,
            "trust_remote_code": False,
            "data": DataConfig(prompts=[], template="raw"),
            "folder": folder,
            "benchmarks": [],
            "limit": None,
            "max_new_tokens": 8,
            "seed": 0,
            "settings": RolloutConfig(max_num_seqs=16, kv_cache_gib=0.125),
            "device": Device(),
            "env": {},
            "cores": None,
            "logs": tmp_path / "logs",
        }
        return BenchJob.model_validate({**fields, **changes})

    return make


def scored(job: BenchJob, pool: RolloutPool | None, *names: str) -> list[Result]:
    session = Session(job, pool)  # type: ignore[arg-type]
    try:
        return [session.run(benchmark) for benchmark in find(names)]
    finally:
        session.close()


def test_likelihoods_are_those_of_a_plain_forward_pass(make_folder, make_bench, model, pool):  # noqa: F811
    """Answer by answer, for choices of one token and of several; the text is cut where its question ends."""
    import torch

    from npd_ascend.rollout.forward import token_logprobs

    tokenizer = load_tokenizer(model)
    size, names, lengths = max(tokenizer.get_vocab().values()) + 1, ("mmlu", "cluewsc"), set()
    job = make_bench(make_folder(*names))
    scored(job, pool, *names)
    for benchmark in find(names):
        rows = benchmark.rows(job.folder)
        for row, sample in zip(rows, read_samples(job.out, benchmark.name), strict=True):
            expected = []
            for choice in benchmark.choices(row):
                ids, begin = tokenizer.encode(sample.prompt + choice), len(tokenizer.encode(sample.prompt))
                found = token_logprobs(model, ids, torch.float32, torch.float32, size)
                expected.append(float(found[begin - 1 :].sum()))
                lengths.add(len(ids) - begin)
            assert [g[0] for g in sample.given] == pytest.approx(expected, abs=2e-3)
            assert sample.score == float(expected.index(max(expected)) == benchmark.right(row))
    assert min(lengths) == 1 < max(lengths)


def test_a_choice_without_tokens_is_refused(make_folder, make_bench):  # noqa: F811
    """A tokenizer of words takes a Chinese question with its answer for one unknown word."""
    mini = Path(__file__).parents[2] / "assets" / "mini" / "teacher"
    job = make_bench(make_folder("cluewsc"), model=mini, tokenizer=mini, teacher=mini)
    with pytest.raises(UserError, match="no token of the choice '否'"):
        scored(job, None, "cluewsc")  # no engine is reached


def test_prompts_are_those_of_lm_eval_s_own_task(make_folder):  # noqa: F811
    """Its template file, filled by Jinja as lm-eval does it, five solved questions in front."""
    import yaml
    from jinja2 import Template

    (benchmark,) = find(["mmlu"])
    folder = make_folder("mmlu")
    place = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    text = (place / "_default_template_yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text) | yaml.safe_load((place / "mmlu_us_foreign_policy.yaml").read_text(encoding="utf-8"))
    row = benchmark.rows(folder)[3]
    question = Template(config["doc_to_text"]).render(
        question=row.text("question"), choices=[row.text(c) for c in "ABCD"]
    )
    asked = benchmark.asked(row)
    assert asked.startswith(config["description"]) and asked.endswith(f"\n\n{question}")
    assert benchmark.choices(row) == [f" {c}" for c in config["doc_to_choice"]]


def test_what_is_known_is_not_asked_again(make_folder, make_bench, pool, capfd):  # noqa: F811
    folder = make_folder("mmlu", "gsm8k")
    first, some = scored(make_bench(folder, limit=1), pool, "mmlu", "gsm8k")
    assert (first.n, first.asked, some.asked) == (1, 4, 1) and first.marks[0] == "1 of 8 rows"
    every, both = scored(make_bench(folder), pool, "mmlu", "gsm8k")
    assert (every.n, every.asked, both.asked) == (8, 28, 1)
    assert read_result(make_bench(folder).out, "mmlu") == every
    assert scored(make_bench(folder), pool, "mmlu")[0] == every and "already scored" in capfd.readouterr().err
    longer = scored(make_bench(folder, max_new_tokens=12), pool, "gsm8k")[0]
    assert longer.asked == 2 and longer.fingerprint != both.fingerprint


def test_samples_have_seeds_of_their_own(make_folder, make_bench, pool):  # noqa: F811
    folder = make_folder("aime24")
    result = scored(make_bench(folder), pool, "aime24")[0]
    (sample,) = read_samples(make_bench(folder).out, "aime24")
    assert result.asked == 16 == len(sample.given) and len(set(sample.given)) > 4 and result.n == 1
    again = scored(make_bench(folder, out=make_bench(folder).out / "again"), pool, "aime24")[0]
    (other,) = read_samples(make_bench(folder).out / "again", "aime24")
    assert other.given == sample.given and again.fingerprint == result.fingerprint
    reseeded = scored(make_bench(folder, seed=1), pool, "aime24")[0]
    assert reseeded.asked == 16


def test_a_chat_needs_a_template(make_folder, make_bench):  # noqa: F811
    folder = make_folder("gsm8k")
    (benchmark,) = find(["gsm8k"])
    for template in ("auto", "raw"):
        session = Session(make_bench(folder, data=DataConfig(prompts=[], template=template)), None)  # type: ignore[arg-type]
        if template == "raw":
            assert session.prompts(benchmark, benchmark.rows(folder))[0].startswith("Ann has 3 pens")
        else:
            with pytest.raises(UserError, match="gsm8k asks in a chat, but .* has no chat template"):
                session.prompts(benchmark, benchmark.rows(folder))


def test_what_is_missing_is_one_line(make_folder, make_bench):  # noqa: F811
    with pytest.raises(UserError, match="cmmlu is missing; it comes from"):
        stage.run(make_bench(make_folder("mmlu"), benchmarks=["cmmlu"]))
