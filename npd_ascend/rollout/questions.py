"""Questions with settings of their own, each answered in memory: what benchmarks ask, who bound every task differently.

Beside answers to be generated there are texts whose log-prob is asked for. A pool hands questions out in blocks; a
worker is sent the next block before it runs dry, and tells what it has about twice a second. Nothing is stored here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npd_ascend.progress import emit
from npd_ascend.rollout.job import AskJob, RolloutJob
from npd_ascend.workers.session import Work, command

if TYPE_CHECKING:
    from npd_ascend.rollout.engine import Engine

_TELL_S = 0.5


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        ids: token ids of the prompt; at least one.
        given: token ids whose log-probs behind the prompt are asked for; without any, an answer is generated.
        max_tokens: most tokens of an answer.
        stop: texts that end an answer.
        seed: of a sampled answer; None: greedy.
        temperature, top_p, top_k: of a sampled answer; top_k 0 means no restriction.
    """

    ids: list[int]
    given: list[int]
    max_tokens: int = 0
    stop: list[str] | None = None
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def length(self) -> int:
        """Tokens for which the engine must have room."""
        return len(self.ids) + len(self.given) + max(1, self.max_tokens)


@dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
        ids: token ids of the answer, a stop token included; empty where log-probs were asked for.
        finish: ``stop``, ``length`` or ``given``.
        logprob: sum over the given tokens, nats.
        greedy: whether each of them is the likeliest at its place.
    """

    ids: list[int]
    finish: str
    logprob: float = 0.0
    greedy: bool = False


class Asking(Work):
    """Questions on their way through a pool.

    Args:
        job: model and settings; its datasets are not looked at.
        tokenizer: folder of the tokenizer that reads stop texts.
        trust_remote_code: of the tokenizer.
        questions: all of them.
        take: called with the number of a question and its reply, in the order in which they come.
        workers: over how many the questions are spread.
    """

    def __init__(
        self,
        job: RolloutJob,
        tokenizer: Path,
        trust_remote_code: bool,
        questions: Sequence[Question],
        take: Callable[[int, Reply], None],
        workers: int,
    ):
        block = AskJob(fingerprint="", job=job, tokenizer=tokenizer, trust_remote_code=trust_remote_code, questions=[])
        super().__init__("rollout", block, "rollout", job.settings)
        self._questions, self._take = questions, take
        self._waiting = deque(range(len(questions)))
        self._out: dict[int, set[int]] = {}
        self._low = job.settings.max_num_seqs
        self._block = max(1, min(4 * self._low, -(-len(questions) // workers)))

    def left(self) -> bool:
        """Whether there are questions that no worker has."""
        return bool(self._waiting)

    def command(self, index: int) -> dict[str, Any] | None:
        """The next block, for a worker that has nothing to do; None: none is left."""
        numbers = [self._waiting.popleft() for _ in range(min(self._block, len(self._waiting)))]
        if not numbers:
            return None
        self._out.setdefault(index, set()).update(numbers)
        questions = [(n, asdict(self._questions[n])) for n in numbers]
        return command(self.module, self.job.model_copy(update={"questions": questions}))

    def hear(self, index: int, event: dict[str, Any]) -> bool:
        """Takes what a worker tells; returns whether it is still at work."""
        out = self._out.get(index, set())
        for number, reply in event.get("replies", ()):
            if number in out:
                out.discard(number)
                self._take(number, Reply(**reply))
        return bool(out)

    def more(self, index: int) -> dict[str, Any] | None:
        """A block for a worker that will soon run dry; None: there is none, or it has enough."""
        return self.command(index) if len(self._out.get(index, ())) < self._low else None

    def lose(self, index: int) -> None:
        """A worker is gone: what it had waits again."""
        self._waiting.extendleft(sorted(self._out.pop(index, ()), reverse=True))


def answer(block: AskJob | None, engine: Engine, following: Callable[[], AskJob | None]) -> None:
    """In a worker: asks the engine all questions of a block, and of those that come meanwhile; tells of replies about
    twice a second.

    Args:
        block: the first one.
        engine: holds the job's model.
        following: gives the next block, or None where there is none now.
    """
    flying, replies, told = 0, [], time.monotonic()
    while True:
        while block is not None:
            for number, fields in block.questions:
                engine.ask(str(number), Question(**fields))
                flying += 1
            block = following()
        if not flying:
            break
        for name, reply in engine.replies():
            replies.append([int(name), asdict(reply)])
            flying -= 1
        if not flying or time.monotonic() - told > _TELL_S:  # nothing new is a sign of life, too
            emit("replies", replies=replies)
            replies, told = [], time.monotonic()
        block = following()
