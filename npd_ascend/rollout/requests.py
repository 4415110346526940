"""What has to be answered, and what an answer is: plain data shared by the engine loop and the shards."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from npd_ascend.arrays import Array
from npd_ascend.errors import UserError
from npd_ascend.rollout.job import RolloutJob
from npd_ascend.store.identity import sample_id, sample_seed


@dataclass(frozen=True)
class Request:
    """One sample to be generated.

    Attributes:
        shard: shard of prompts and of rollouts.
        row: row of the rollouts shard, ``place of the prompt in its shard * paths + path``.
        prompt_ids: token ids of the prompt.
        seed: 32-bit seed of a sampled path; None: greedy.
        max_tokens: room for the response.
    """

    shard: int
    row: int
    prompt_ids: list[int]
    seed: int | None
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """One finished sample.

    Attributes:
        ids: int32 [T], the stop token included when there is one.
        logprobs: float32 [T], log-prob of each token at temperature 1, nats; None for references.
        finish: ``stop``, ``length`` or ``reference``.
    """

    ids: Array
    logprobs: Array | None
    finish: str

    def packed(self) -> dict[str, Any]:
        """As JSON, for the journal of a shard and the pipe of a worker."""
        assert self.logprobs is not None
        arrays = {"ids": self.ids.astype("<i4"), "logprobs": self.logprobs.astype("<f4")}
        return {"finish": self.finish, **{k: base64.b64encode(a.tobytes()).decode() for k, a in arrays.items()}}

    @classmethod
    def unpacked(cls, record: dict[str, Any]) -> Answer:
        """Of what ``packed`` gave."""
        ids, logprobs = (base64.b64decode(record[k]) for k in ("ids", "logprobs"))
        return cls(
            np.frombuffer(ids, "<i4").astype(np.int32),
            np.frombuffer(logprobs, "<f4").astype(np.float32),
            record["finish"],
        )


def requests_of(job: RolloutJob, shard: int, prompts: pa.Table) -> list[Request]:
    """All requests of a prompts shard, in row order.

    Args:
        job: the job; path 0 is greedy if ``settings.greedy``, the others are sampled.
        shard: its number.
        prompts: columns ``prompt_index``, ``prompt_id``, ``prompt_ids``.

    Raises:
        UserError: a prompt is empty, leaves no room for an answer, or has ids beyond the vocabulary.
    """
    settings, out = job.settings, []
    columns = [prompts[name].to_pylist() for name in ("prompt_index", "prompt_id", "prompt_ids")]
    for place, (index, prompt, ids) in enumerate(zip(*columns, strict=True)):
        where = f"{job.prompts}: prompt {index}"
        if not ids:
            raise UserError(f"{where} has no tokens; remove the row from the prompt file")
        if max(ids) >= job.vocabulary or min(ids) < 0:
            raise UserError(
                f"{where} has token id {max(ids)} but the tokenizer knows ids below {job.vocabulary}; use a new run.dir"
            )
        room = min(settings.max_new_tokens, job.max_model_len - len(ids))
        if room < 1:
            raise UserError(
                f"{where} has {len(ids)} tokens, which leaves no room for an answer within "
                f"{job.max_model_len}; lower data.max_prompt_tokens"
            )
        for path in range(settings.paths):
            greedy = settings.greedy and path == 0
            seed = None if greedy else sample_seed(job.seed, sample_id(prompt, path, job.generation))
            out.append(Request(shard, place * settings.paths + path, ids, seed, room))
    return out


def table_of(
    job: RolloutJob,
    prompts: pa.Table,
    answers: list[Answer],
    labels: pa.ChunkedArray | None = None,
    masked: pa.ChunkedArray | None = None,
) -> pa.Table:
    """Rollouts table (``store.schemas.ROLLOUTS``) of one shard.

    Args:
        job: the job.
        prompts: columns ``prompt_index`` and ``prompt_id`` of the prompts shard.
        answers: one a row, ordered by prompt and path.
        labels: the prompts' ``label_ids`` when the answers are references.
        masked: the prompts' ``reference_masked`` when the answers are references and some have masked spans.
    """
    paths, n = job.settings.paths, len(answers)
    index = np.repeat(prompts["prompt_index"].to_numpy(), paths)
    path = np.tile(np.arange(paths, dtype=np.int8), len(prompts))
    ids = [sample_id(prompt, p, job.generation) for prompt in prompts["prompt_id"].to_pylist() for p in range(paths)]
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(a.ids) for a in answers])]).astype(np.int32))
    tokens = _lists(offsets, [a.ids for a in answers], np.int32)
    logprobs: pa.Array = pa.nulls(n, pa.list_(pa.float32()))
    if job.settings.source != "reference":
        logprobs = _lists(offsets, [a.logprobs for a in answers if a.logprobs is not None], np.float32)
    finishes = ["stop", "length", "reference"]
    code = pa.array(np.array([finishes.index(a.finish) for a in answers], np.int8))
    return pa.table(
        {
            **({} if masked is None else {"masked": masked}),
            "sample_id": pa.array(ids, pa.int64()),
            "prompt_index": pa.array(index, pa.int64()),
            "path": pa.array(path, pa.int8()),
            "response_ids": tokens,
            "logprobs": logprobs,
            "label_ids": pa.nulls(n, pa.list_(pa.int32())) if labels is None else labels,
            "finish_reason": pa.DictionaryArray.from_arrays(code, pa.array(finishes)),
        }
    )


def _lists(offsets: pa.Array, parts: list[Array], dtype: type) -> pa.Array:
    flat = np.concatenate(parts) if parts else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(flat.astype(dtype)))
