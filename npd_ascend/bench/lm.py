"""The model as lm-eval sees it: its requests become questions to the rollout workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lm_eval.api.model import TemplateLM

from npd_ascend.bench.answers import Answers, Ask
from npd_ascend.data.answers import Decoder
from npd_ascend.data.template import Template
from npd_ascend.data.tokenizer import encode
from npd_ascend.errors import UserError
from npd_ascend.rollout.questions import Question, Reply
from npd_ascend.store.identity import digest, sample_seed


class PoolLM(TemplateLM):  # type: ignore[misc]
    """A checkpoint behind rollout workers.

    Args:
        tokenizer: transformers tokenizer.
        template: how prompts are tokenised, and what ends an answer.
        longest: tokens that the model holds; what is longer loses its beginning.
        answers: replies that are known.
        ask: has questions answered.
        seed: root of the seeds of sampled answers.

    Attributes:
        name: of the benchmark at work, for progress.
        replies: of the last call, in the order of its requests.
        cut: prompts of the last call that lost their beginning.
    """

    def __init__(self, tokenizer: Any, template: Template, longest: int, answers: Answers, ask: Ask, seed: int):
        super().__init__()
        self.tokenizer, self._template, self._longest = tokenizer, template, longest
        self._answers, self._ask, self._seed = answers, ask, seed
        self._decode = Decoder(tokenizer, template.eos)
        self._encoded = lru_cache(maxsize=8)(self._encode)  # the context of a question comes with each of its choices
        self.name, self.cut = "", 0
        self.replies: list[Reply] = []

    @property
    def eot_token_id(self) -> int:
        return self._template.eos[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As lm-eval's ``hf`` model does: with what the tokenizer adds by itself, but no second BOS."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return list(self._encoded(string, add_special_tokens))

    def _encode(self, string: str, special: bool) -> list[int]:
        return encode(self.tokenizer, [string], special=special)[0]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        questions = []
        self.cut = 0
        for text, context, continuation in requests:
            if not continuation:
                raise UserError(
                    f"bench {self.name}: the checkpoint's tokenizer makes no token of the choice {text[1]!r} behind "
                    f"its question, so it has no likelihood; leave this benchmark out"
                )
            room = self._longest - len(continuation)
            self.cut += len(context) > room
            questions.append(Question(context[-room:], continuation))
        self.replies = self._answers.of(questions, self._ask, f"bench {self.name}")
        return [(r.logprob, r.greedy) for r in self.replies]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers as text, without special tokens and thinking; a repeated request is answered with another seed."""
        prompts = self._template.prompts([r.args[0] for r in requests])
        times: Counter[str] = Counter()
        questions = []
        self.cut = 0
        for ids, request in zip(prompts, requests, strict=True):
            options = request.args[1]
            most = min(int(options["max_gen_toks"]), self._longest - 1)
            room = self._longest - most
            self.cut += len(ids) > room
            sampled: dict[str, Any] = {}
            if options["temperature"]:
                key = digest([ids, options])
                seed = sample_seed(self._seed, int(digest([key, times[key]])[:15], 16))
                times[key] += 1
                sampled = {"seed": seed, "temperature": options["temperature"], "top_p": options["top_p"]}
            questions.append(Question(ids[-room:], [], most, list(options["until"]), **sampled))
        self.replies = self._answers.of(questions, self._ask, f"bench {self.name}")
        return [self._text(r.ids, q.stop or []) for r, q in zip(self.replies, questions, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError("no benchmark here asks for the likelihood of a whole text")

    def _text(self, ids: list[int], stop: list[str]) -> str:
        """An answer up to the first stop text, with the spaces at its ends: a function's body may begin with them."""
        thinking, text = self._decode.parts(ids)
        if not thinking:
            text = self.tokenizer.decode(
                [i for i in ids if i not in self._decode.eos],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        ends = [at for s in stop if (at := text.find(s)) >= 0]
        return text[: min(ends)] if ends else text
