"""A vLLM engine that holds one snapshot: token ids in; tokens, log-probs and finish reasons out.

Keeps to the interface that vLLM 0.23 (under vllm-ascend) and 0.32 (CPU) share. What differs by device is in
the two tables below.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.rollout.check import AnswerCheck, Verdict
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.rollout.questions import Question, Reply
from npd_ascend.rollout.requests import Answer, Request
from npd_ascend.rollout.servable import check_servable, read_architecture
from npd_ascend.store.identity import weights_stamp

ENVIRONMENT = {
    "cpu": {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: starts in a third of the time
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # workers and trainer share the cores
        "OMP_WAIT_POLICY": "passive",  # spinning threads cost a contended run four fifths of its speed
        "TORCHDYNAMO_DISABLE": "1",  # compiling the samplers takes 3 to 20 s and gains nothing here
    },
    "ascend": {
        "VLLM_ASCEND_ENABLE_NZ": "0",  # weights in NZ layout cannot be reloaded in place
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    },
}
_COMMON_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {}, "ascend": {"additional_config": {"weight_nz_mode": 0}}}
_BATCHED_TOKENS = {"cpu": 2048, "ascend": 8192}


def set_environment(target: str) -> None:
    """Sets what vLLM and torch read when they are imported; what the user has set already stays."""
    for key, value in {**_COMMON_ENVIRONMENT, **ENVIRONMENT[target]}.items():
        os.environ.setdefault(key, value)


class Engine:
    """One ``vllm.LLM`` driven step by step.

    Args:
        job: the first job; later ones must pass ``suits``.

    Attributes:
        eager: whether it runs without captured graphs.
        reloads: how often its weights were replaced.
        llm: the ``vllm.LLM`` itself.

    Raises:
        UserError: the checkpoint is missing or unusable, or the settings cannot hold the job.
    """

    def __init__(self, job: RolloutJob):
        config = read_architecture(job.model)
        check_servable(job.model, job.device.target, job.max_model_len)
        if config["vocab_size"] < job.vocabulary:
            raise UserError(
                f"{job.model}: its logits cover {config['vocab_size']} ids but the tokenizer has "
                f"{job.vocabulary}; the checkpoint and the tokenizer do not belong together"
            )
        self._config, self._job, self._model = config, job, job.model
        self.reloads = 0
        self._asked: dict[str, Question] = {}
        self._weights = weights_stamp(job.model)
        set_environment(job.device.target)
        from vllm import LLM

        s, target = job.settings, job.device.target
        options = dict(_OPTIONS[target])
        if target == "cpu":
            options["kv_cache_memory_bytes"] = int(s.kv_cache_gib * 2**30)
        self.eager = s.enforce_eager if s.enforce_eager is not None else target == "cpu"
        try:
            self.llm = LLM(
                model=str(job.model),
                skip_tokenizer_init=True,
                trust_remote_code=False,
                generation_config="vllm",
                # Mistral's folders hold the weights a second time, in its own format, which vLLM would prefer.
                config_format="hf",
                load_format="safetensors",
                dtype=job.device.dtype,
                max_model_len=job.max_model_len,
                max_num_seqs=s.max_num_seqs,
                # A prefill that is split in two breaks the generators of seeded requests.
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(_BATCHED_TOKENS[target], job.max_model_len, s.max_num_seqs),
                tensor_parallel_size=s.tensor_parallel,
                gpu_memory_utilization=s.memory_fraction,
                enforce_eager=self.eager,
                disable_log_stats=True,
                seed=0,
                worker_extension_cls="npd_ascend.rollout.extension.ReloadExtension",
                **options,
            )
        except ValueError as e:
            if "KV cache" in str(e) or "memory" in str(e):
                knob = "rollout.kv_cache_gib" if target == "cpu" else "rollout.memory_fraction"
                raise UserError(
                    f"{knob} is too small for sequences of {job.max_model_len} tokens: {str(e).splitlines()[0]}"
                ) from e
            raise
        self._engine = self.llm.llm_engine
        self.llm.collective_rpc("npd_mask_padding", args=(job.vocabulary,))
        self._verify(job.model)
        self._check = AnswerCheck(job.vocabulary, job.max_model_len, job.device.dtype)

    def suits(self, job: RolloutJob) -> bool:
        """Whether this engine can take a job, possibly after a reload of weights."""
        mine, its = self._job, job
        return (
            read_architecture(its.model) == self._config
            and its.max_model_len <= mine.max_model_len
            and its.device == mine.device
            and its.vocabulary == mine.vocabulary
            and all(
                getattr(its.settings, k) == getattr(mine.settings, k)
                for k in ("max_num_seqs", "tensor_parallel", "kv_cache_gib", "memory_fraction", "enforce_eager")
            )
        )

    def holds(self, model: Path) -> bool:
        """Whether the loaded weights are those that now stand in a folder."""
        return weights_stamp(model) == self._weights

    def reload(self, model: Path) -> None:
        """Takes over the weights of another checkpoint of the same architecture, in place.

        Raises:
            RuntimeError: requests are in flight (one sample would mix two policies), or the weights in the engine
                are not those of the checkpoint afterwards.
        """
        if self._engine.has_unfinished_requests():
            raise RuntimeError("reload with requests in flight")
        weights = weights_stamp(model)
        self._weights = None  # in between the engine holds neither
        self.llm.collective_rpc("npd_reload", args=(str(model),))
        self._verify(model)
        self.llm.reset_prefix_cache()
        self._weights, self._model = weights, model
        self.reloads += 1

    def check(self) -> Verdict:
        """Compares what the engine answers with what its weights say; call it first right after the start.

        Raises:
            UserError: the model's log-probs are not numbers.
        """
        return self._check.judge(self._model, self._score())

    def params(self, job: RolloutJob, request: Request) -> Any:
        """vLLM's sampling parameters of a request: one answer, raw log-prob of each token, own seed."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s = job.settings
        sampled: dict[str, Any] = {"temperature": 0.0}
        if request.seed is not None:
            sampled = {"temperature": s.temperature, "top_p": s.top_p, "top_k": s.top_k, "seed": request.seed}
        return SamplingParams(
            n=1,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted({*job.eos_token_ids, *s.stop_token_ids}),
            detokenize=False,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **sampled,
        )

    def submit(self, name: str, request: Request, params: Any) -> None:
        """Queues a request under a name of its own."""
        from vllm.inputs import TokensPrompt

        self._engine.add_request(name, TokensPrompt(prompt_token_ids=request.prompt_ids), params)

    def step(self) -> list[tuple[str, Answer]]:
        """Advances all running requests by one token; returns those that finished.

        Raises:
            UserError: the model's log-probs are not numbers.
        """
        done = []
        for output in self._engine.step():
            if output.finished:
                out = output.outputs[0]
                logprobs = np.asarray(out.logprobs.logprobs, np.float32)
                if np.isnan(logprobs).any():
                    raise UserError(f"{self._job.model}: the model's log-probs are NaN; check the checkpoint's weights")
                finish = "stop" if out.finish_reason == "stop" else "length"
                done.append((output.request_id, Answer(np.asarray(out.token_ids, np.int32), logprobs, finish)))
        return done

    def read_stops(self, tokenizer: Any) -> None:
        """Gives the engine the tokenizer by which it looks for stop texts in answers; without one it has none."""
        self._engine.output_processor.tokenizer = tokenizer

    def ask(self, name: str, question: Question) -> None:
        """Queues a question under a name of its own; stop texts need ``read_stops`` before."""
        from vllm.inputs import TokensPrompt

        self._asked[name] = question
        ids = question.ids if len(question.given) == 1 else question.ids + question.given
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=ids), self._question_params(question))

    def replies(self) -> list[tuple[str, Reply]]:
        """Advances all questions by one token; returns those that are answered."""
        finished = [output for output in self._engine.step() if output.finished]
        return [(o.request_id, _reply(self._asked.pop(o.request_id), o)) for o in finished]

    def _question_params(self, question: Question) -> Any:
        """One given token is forced: such a request finds its prompt in the prefix cache, where the other choices
        and the questions with the same examples have left it. Several are a prefill with the log-probs of its tokens,
        which vLLM computes anew each time."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common: dict[str, Any] = {"n": 1, "output_kind": RequestOutputKind.FINAL_ONLY, "temperature": 0.0}
        if question.given:
            scores: dict[str, Any] = {"logprobs": 0} if len(question.given) == 1 else {"prompt_logprobs": 0}
            if len(question.given) == 1:
                scores["allowed_token_ids"] = question.given
            return SamplingParams(
                max_tokens=1, ignore_eos=True, detokenize=False, flat_logprobs=True, **common, **scores
            )
        if question.seed is not None:
            names = ("temperature", "top_p", "top_k", "seed")
            common |= {name: getattr(question, name) for name in names}
        return SamplingParams(
            max_tokens=question.max_tokens,
            stop_token_ids=sorted({*self._job.eos_token_ids, *self._job.settings.stop_token_ids}),
            stop=question.stop,
            detokenize=bool(question.stop),
            **common,
        )

    def close(self) -> None:
        """Stops vLLM's own processes, where it has any, and frees its memory; may be called twice."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self.llm = self._engine = None
            gc.collect()

    def _score(self) -> Array:
        """Log-probs of the fixed request, the first ones from prefill, the last ones from decoding."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        check = self._check
        self._engine.add_request(
            "check",
            TokensPrompt(prompt_token_ids=check.prompt),
            SamplingParams(
                temperature=0.0,
                max_tokens=check.decoded,
                ignore_eos=True,
                allowed_token_ids=[check.forced],
                detokenize=False,
                prompt_logprobs=0,
                logprobs=0,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            ),
        )
        outputs: list[Any] = []
        while not outputs:
            outputs = [o for o in self._engine.step() if o.finished]
        return np.concatenate([outputs[0].prompt_logprobs.logprobs, outputs[0].outputs[0].logprobs.logprobs])

    def _verify(self, model: Path) -> None:
        for compared, different in self.llm.collective_rpc("npd_differences", args=(str(model),)):
            if different or not compared:
                raise RuntimeError(
                    f"the engine does not hold the weights of {model}: {len(different)} of {compared} "
                    f"parameters differ, e.g. {different[:3]}"
                )


def _reply(question: Question, output: Any) -> Reply:
    """What vLLM's output says to a question.

    Raises:
        UserError: the model's log-probs are not numbers.
    """
    out, m = output.outputs[0], len(question.given)
    if not m:
        return Reply(list(out.token_ids), "stop" if out.finish_reason == "stop" else "length")
    found = out.logprobs if m == 1 else output.prompt_logprobs
    logprob = float(np.sum(found.logprobs[-m:], dtype=np.float64))
    if np.isnan(logprob):
        raise UserError("the model's log-probs are NaN; check the checkpoint's weights")
    return Reply([], "given", logprob, all(rank == 1 for rank in found.ranks[-m:]))
