"""Prompt files -> the ``prompts`` dataset: token ids of every prompt, and of its reference answer if it has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from npd_ascend.data.compat import Agreement, agree
from npd_ascend.data.job import PrepareJob
from npd_ascend.data.prompts import PromptRow, read_prompts
from npd_ascend.data.sources import expand
from npd_ascend.data.template import Template, Trajectory, Unrenderable
from npd_ascend.errors import UserError
from npd_ascend.progress import Meter, message
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.identity import prompt_id

_BLOCK = 4096  # rows tokenised in one call: enough to keep all threads of a fast tokenizer busy
_BLOCK_TEXT = 32 << 20  # characters: a block of the longest rows must fit into memory, too


def run(job: PrepareJob) -> None:
    """Makes or completes the dataset.

    ``limit`` of the job counts rows of the files; ``settings.limit`` is not looked at, since one ``data`` section
    serves training and evaluation prompts. The manifest's extra has ``prompts``, ``dropped_too_long``,
    ``longest_prompt``, ``longest_reference`` and ``longest_prompt_and_reference`` (tokens), ``header_ids``
    (context of an answer without its question), ``eos_token_ids`` (stop ids of both models and of the template),
    ``end_token_id`` (of these, the one that answers are trained to end in), ``bos_token_id``, ``pad_token_id``,
    ``tokenizer_size`` (ids that both models know are below it), ``template`` (``chat`` or ``raw``), ``chat_template``
    (its text) and ``special_tokens`` (what a tokenizer that goes with it must say).

    Raises:
        UserError: bad file, row, tokenizer or template; or nothing is left.
    """
    dataset = Dataset(job.out, "prompts", job.fingerprint)
    if dataset.complete:
        return
    both = _agreement(job)
    for remark in both.remarks:
        message(f"{remark.text}{f' ({remark.remedy})' if remark.remedy else ''}", remark.level)
    tokenizer, template = both.tokenizer, both.template
    rows = read_prompts(job.files, job.settings, job.need_reference, job.need_answer, job.limit)
    counts = _counts()
    shards, pending = 0, []
    with Meter("prepare", None, "prompts") as meter:
        for record in _tokenised(rows, both, job, counts, meter):
            pending.append(record)
            if len(pending) == job.shard_size:
                _write(dataset, shards, pending)
                shards, pending = shards + 1, []
        if pending:
            _write(dataset, shards, pending)
            shards += 1
    if not counts["prompts"]:
        raise UserError(
            f"all {counts['dropped_too_long']} prompts are longer than data.max_prompt_tokens = "
            f"{job.settings.max_prompt_tokens}; raise it"
        )
    if counts["dropped_too_long"]:
        message(
            f"prepare: left out {counts['dropped_too_long']} prompts over {job.settings.max_prompt_tokens} "
            "tokens (data.max_prompt_tokens)",
            "warning",
        )
    dataset.finish(
        shards,
        **counts,
        header_ids=template.header_ids,
        eos_token_ids=template.eos,
        end_token_id=template.end_ids[-1],
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer_size=both.vocabulary.size,
        template="chat" if template.chat else "raw",
        chat_template=both.chosen.text if template.chat else None,
        special_tokens=both.special_tokens,
    )


def look(job: PrepareJob, rows: int, both: Agreement | None = None) -> dict[str, int]:
    """Does what ``run`` does with the tokenizer, its template and the first rows of each file, and writes nothing.

    Args:
        job: as for ``run``; ``out`` is not looked at.
        rows: how many of each file.
        both: on what the two models agree; None: is found out.

    Returns:
        ``prompts``, ``dropped_too_long`` and the longest of them, as in the manifest of ``run``.

    Raises:
        UserError: what ``run`` would refuse of these.
    """
    both, counts = both or _agreement(job), _counts()
    for path in expand(job.files):
        if job.limit is not None and counts["prompts"] + counts["dropped_too_long"] >= job.limit:
            break
        some = read_prompts([path], job.settings, job.need_reference, job.need_answer, rows)
        for _ in _tokenised(some, both, job, counts, Meter("prepare", None, silent=True)):
            pass
    return counts


def _agreement(job: PrepareJob) -> Agreement:
    return agree(job.tokenizer, job.settings, job.student, job.teacher, job.teacher_needed, job.trust_remote_code)


def _counts() -> dict[str, int]:
    return {
        "prompts": 0,
        "dropped_too_long": 0,
        "longest_prompt": 0,
        "longest_reference": 0,
        "longest_prompt_and_reference": 0,
    }


def _tokenised(
    rows: Iterator[PromptRow], both: Agreement, job: PrepareJob, counts: dict[str, int], meter: Meter
) -> Iterator[dict[str, Any]]:
    """Rows of the dataset in order; ``counts`` is kept up to date."""
    limit, template = job.settings.max_prompt_tokens, both.template
    for block in _blocks(rows):
        heads = _rendered(block, template)
        prompts = template.prompts(heads)
        fit = [i for i, ids in enumerate(prompts) if len(ids) <= limit]
        if len(fit) < len(block) and job.settings.too_long == "refuse":
            bad = next(i for i, ids in enumerate(prompts) if len(ids) > limit)
            raise UserError(
                f"{block[bad].where}: prompt has {len(prompts[bad])} tokens, over data.max_prompt_tokens "
                f"= {limit}; raise it, or set data.too_long: drop"
            )
        counts["dropped_too_long"] += len(block) - len(fit)
        block, heads, prompts = [block[i] for i in fit], [heads[i] for i in fit], [prompts[i] for i in fit]
        references, labels = _answers(block, heads, prompts, template)
        masked = _trajectories(block, heads, prompts, template, references)
        for row, ids, reference, label, spans in zip(block, prompts, references, labels, masked, strict=True):
            if not ids:
                raise UserError(f"{row.where}: the tokenizer makes no token of this prompt")
            top = max(max(part, default=0) for part in (ids, reference or (), label or ()))
            _check_known(row, both, ids + (reference or []))
            if top >= both.vocabulary.size:
                raise UserError(
                    f"{row.where}: the tokenizer makes token id {top} of this row but lists "
                    f"{both.vocabulary.size} ids; its files in {job.tokenizer} do not belong together"
                )
            index = counts["prompts"]
            counts["prompts"] += 1
            counts["longest_prompt"] = max(counts["longest_prompt"], len(ids))
            answer_tokens = len(reference or ())
            counts["longest_reference"] = max(counts["longest_reference"], answer_tokens)
            counts["longest_prompt_and_reference"] = max(
                counts["longest_prompt_and_reference"], len(ids) + answer_tokens
            )
            yield {
                "prompt_index": index,
                "prompt_id": prompt_id(ids, index),
                "prompt_ids": ids,
                "reference_ids": reference,
                "label_ids": label,
                "answer": row.answer,
                "text": row.text,
                "reference_masked": spans,
            }
        meter.advance(len(block), tokens=sum(map(len, prompts)))


def _blocks(rows: Iterator[PromptRow]) -> Iterator[list[PromptRow]]:
    """Runs of at most ``_BLOCK`` rows that end once they hold ``_BLOCK_TEXT`` characters."""
    block: list[PromptRow] = []
    text = 0
    for row in rows:
        block.append(row)
        text += sum(len(m["content"]) for m in (*row.messages, *(row.turns or ())))
        text += len(row.response or "") + len(row.labels or "")
        if len(block) == _BLOCK or text >= _BLOCK_TEXT:
            yield block
            block, text = [], 0
    if block:
        yield block


def _check_known(row: PromptRow, both: Agreement, ids: list[int]) -> None:
    """Tokens that the student alone knows would be noise to the teacher."""
    found = both.vocabulary.strange.intersection(ids)
    if found:
        token = both.tokenizer.convert_ids_to_tokens(min(found))
        raise UserError(
            f"{row.where}: it has the token {token!r}, which only the student's tokenizer knows; leave the "
            "row out, or take the teacher's tokenizer (models.tokenizer)"
        )


def _answers(
    block: list[PromptRow], heads: list[str], prompts: list[list[int]], template: Template
) -> tuple[list[list[int] | None], list[list[int] | None]]:
    """Token ids of reference answers and of their labels, None where a row has none."""
    references: list[list[int] | None] = [None] * len(block)
    labels: list[list[int] | None] = [None] * len(block)
    for field, out in (("response", references), ("labels", labels)):
        which = [i for i, row in enumerate(block) if getattr(row, field) is not None]
        ids = template.answers(
            [block[i].messages for i in which],
            [heads[i] for i in which],
            [prompts[i] for i in which],
            [getattr(block[i], field) for i in which],
            [block[i].tools for i in which],
        )
        for i, row_ids in zip(which, ids, strict=True):
            out[i] = row_ids
    for row, reference, label in zip(block, references, labels, strict=True):
        if reference is not None and label is not None and len(reference) != len(label):
            raise UserError(
                f"{row.where}: {len(label)} label tokens for {len(reference)} response tokens (end token "
                "included); labels must align one to one"
            )
    return references, labels


def _trajectories(
    block: list[PromptRow],
    heads: list[str],
    prompts: list[list[int]],
    template: Template,
    references: list[list[int] | None],
) -> list[list[int] | None]:
    """Puts references of several turns into ``references``; returns the masked spans, None where there are none."""
    masked: list[list[int] | None] = [None] * len(block)
    which = [i for i, row in enumerate(block) if row.turns is not None]
    items = [Trajectory(block[i].messages, block[i].turns or [], block[i].tools, heads[i], prompts[i]) for i in which]
    try:
        found = template.trajectories(items) if items else []
    except Unrenderable as e:
        raise UserError(f"{block[which[e.index]].where}: {e}") from None
    for i, (ids, spans) in zip(which, found, strict=True):
        references[i], masked[i] = ids, spans or None
    return masked


def _rendered(block: list[PromptRow], template: Template) -> list[str]:
    try:
        return template.render([row.messages for row in block], [row.tools for row in block])
    except Unrenderable as e:
        raise UserError(f"{block[e.index].where}: {e}") from None


def _write(dataset: Dataset, index: int, records: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    from npd_ascend.store.schemas import OPTIONAL, PROMPTS

    if dataset.record(index) is None:
        schema = pa.schema([*PROMPTS, *OPTIONAL["prompts"]])
        dataset.write_table(index, pa.Table.from_pylist(records, schema=schema))
