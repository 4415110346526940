"""What was answered, as text: token ids without special tokens and thinking, beside what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from npd_ascend.data.pangu import THINK_END, THINK_START
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset

_THINK = ((THINK_START, THINK_END), ("<think>", "</think>"))


class Decoder:
    """Turns answer ids into the text that is checked: no special tokens, no thinking.

    Args:
        tokenizer: transformers tokenizer.
        eos: ids that end an answer; one that is no special token of the tokenizer is cut off as well.
    """

    def __init__(self, tokenizer: Any, eos: list[int]):
        self.tokenizer, self.eos = tokenizer, set(eos)
        vocab = tokenizer.get_vocab()
        self.marks = [(vocab[a], vocab[b]) for a, b in _THINK if a in vocab and b in vocab]

    def __call__(self, ids: list[int]) -> str:
        return self.parts(ids)[1]

    def parts(self, ids: list[int]) -> tuple[str, str]:
        """Thinking and answer of one response; the answer is empty where the tokens ran out while thinking."""
        while ids and ids[-1] in self.eos:
            ids = ids[:-1]
        thought: list[int] = []
        for start, end in self.marks:
            if end in ids:
                cut = len(ids) - ids[::-1].index(end)
                thought, ids = ids[:cut], ids[cut:]
            elif start in ids:
                cut = ids.index(start)
                thought, ids = ids[cut:], ids[:cut]
        thinking, answer = split_thinking(self._text(ids))
        return (_plain(self._text(thought)) + thinking).strip(), answer.strip()

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def split_thinking(text: str) -> tuple[str, str]:
    """Thinking and what follows its last part; an unfinished one leaves what comes before it."""
    thinking = ""
    for start, end in _THINK:
        before, mark, text = text.rpartition(end)
        text, opened, unfinished = text.partition(start)
        thinking += before * bool(mark) + unfinished
    return _plain(thinking), text


def _plain(text: str) -> str:
    for pair in _THINK:
        for mark in pair:
            text = text.replace(mark, "")
    return text


def answered(prompts: Dataset, rollouts: Dataset) -> Iterator[dict[str, Any]]:
    """Rollout rows joined with text and answer of their prompts, shard by shard: ``prompt_index``, ``path``,
    ``response_ids``, ``finish_reason``, ``text``, ``answer``.

    Raises:
        UserError: the rollouts are of other prompts.
        CorruptShard: a checksum differs.
    """
    if prompts.shards != rollouts.shards:
        raise UserError(
            f"{rollouts.folder}: answers {rollouts.shards} shards of prompts, {prompts.folder} has {prompts.shards}"
        )
    for shard in range(prompts.shards):
        yield from answered_shard(prompts, rollouts, shard)


def answered_shard(prompts: Dataset, rollouts: Dataset, shard: int) -> Iterator[dict[str, Any]]:
    """The rows of one shard; see ``answered``."""
    asked = prompts.read(shard, ["prompt_index", "text", "answer"]).to_pylist()
    by_index = {row["prompt_index"]: row for row in asked}
    answers = rollouts.read(shard, ["sample_id", "prompt_index", "path", "response_ids", "finish_reason"])
    for row in answers.to_pylist():
        if row["prompt_index"] not in by_index:
            raise UserError(
                f"{rollouts.folder}: shard {shard} answers prompt {row['prompt_index']}, which is not "
                f"in shard {shard} of {prompts.folder}"
            )
        yield {**row, **by_index[row["prompt_index"]]}
