"""Replies that a checkpoint has given, kept by the content of the question: no question is ever asked twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npd_ascend.progress import Meter
from npd_ascend.rollout.questions import Question, Reply
from npd_ascend.store.identity import digest
from npd_ascend.store.journal import Journal

Ask = Callable[[Sequence[Question], Callable[[int, Reply], None]], None]


class Answers:
    """The replies of one checkpoint.

    A reply is on disk as soon as it has come, so that a kill costs what was being answered.

    Args:
        folder: of the checkpoint's results.
        engine: what decides a reply beside the question: device, numeric type, stop ids, vocabulary.

    Attributes:
        asked: questions that went to the model since the start.
        tokens: that it wrote for them.
    """

    def __init__(self, folder: Path, engine: Sequence[Any]):
        self._journal = Journal(folder / f"answers-{digest(engine)}.journal")
        self._known = {record.pop("key"): Reply(**record) for record in self._journal.replay()}
        self.asked = self.tokens = 0

    def of(self, questions: Sequence[Question], ask: Ask, name: str) -> list[Reply]:
        """Replies in the order of the questions; equal questions are asked once.

        Args:
            questions: all of them.
            ask: has questions answered.
            name: of the progress.
        """
        keys = [digest(asdict(q)) for q in questions]
        new = {key: q for key, q in zip(keys, questions, strict=True) if key not in self._known}
        order = list(new)
        with Meter(name, len(set(keys)), "questions", len(set(keys)) - len(order)) as meter:

            def take(number: int, reply: Reply) -> None:
                self._journal.append({"key": order[number], **asdict(reply)})
                self._known[order[number]] = reply
                self.asked, self.tokens = self.asked + 1, self.tokens + len(reply.ids)
                meter.advance(tokens=len(reply.ids) or len(new[order[number]].given))

            if order:
                ask(list(new.values()), take)
        return [self._known[key] for key in keys]

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()
