"""How many prompts there are, and how long prompts and answers will be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from npd_ascend.config import Config
from npd_ascend.data.prompts import measure
from npd_ascend.data.sources import NoPromptFile
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

_BYTES_PER_TEXT_TOKEN = 3.5
_ASSUMED, _ASSUMED_ON_NPUS = 1_000, 100_000
"""Prompts whose files are not there yet; held-out ones are as many as the former anywhere."""
_ASSUMED_TOKENS = 300.0


@dataclass(frozen=True)
class Workload:
    """Prompt statistics of a run.

    Attributes:
        prompts: number of prompts.
        prompt_tokens: mean tokens of a prompt, template included.
        answer_tokens: mean tokens of an answer.
        notes: where the numbers come from, for people.
    """

    prompts: float
    prompt_tokens: float
    answer_tokens: float
    notes: list[str] = field(default_factory=list)


def workload(
    config: Config,
    prompts: float | None = None,
    prompt_tokens: float | None = None,
    answer_tokens: float | None = None,
    like: Path | None = None,
    assume: bool = False,
) -> Workload:
    """Statistics from what is given, else from the run's own datasets, else from the prompt files.

    Args:
        config: the run.
        prompts, prompt_tokens, answer_tokens: taken as they are where given.
        like: directory of a run with prompts and answers of the same lengths, used before guessing.
        assume: go on with assumed prompts where a file is not there, and say so.

    Raises:
        UserError: a prompt file cannot be read, or holds nothing.
    """
    notes = []
    if prompts is None or prompt_tokens is None:
        found, mean, note = _prompts(config, like, assume)
        prompts, prompt_tokens = prompts or found, prompt_tokens or mean
        notes.append(note)
    else:
        notes.append(f"{prompts:,.0f} prompts of {prompt_tokens:,.0f} tokens, as given")
    if answer_tokens is None:
        answer_tokens, note = _answer_tokens(config, like)
        notes.append(note)
    else:
        notes.append(f"answers of {answer_tokens:,.0f} tokens, as given")
    return Workload(prompts, prompt_tokens, answer_tokens, notes)


def count_held_out(files: list[Path], limit: int | None, assume: bool) -> float:
    """Rows of the files of an evaluation, as far as they are used; ``assume`` as for ``workload``."""
    try:
        rows = measure(files, "test")[0]
    except NoPromptFile:
        if not assume:
            raise
        rows = limit or _ASSUMED
    return min(rows, limit or rows)


def _prompts(config: Config, like: Path | None, assume: bool) -> tuple[float, float, str]:
    """(prompts, mean prompt tokens, note) from the tokenised prompts, or from the size of the files."""
    try:
        return _found_prompts(config, like)
    except NoPromptFile as e:
        if not assume:
            raise
        count = config.data.limit or (_ASSUMED_ON_NPUS if config.device.target == "ascend" else _ASSUMED)
        mean = min(_ASSUMED_TOKENS, config.data.max_prompt_tokens)
        note = f"{e}: {count:,} prompts of {mean:.0f} tokens assumed; --prompts and --prompt-tokens correct that"
        return count, mean, note


def _found_prompts(config: Config, like: Path | None) -> tuple[float, float, str]:
    try:
        known, mean = _tokenised(config.run.dir)
        return known, mean, f"{known:,} prompts of {mean:.0f} tokens, as tokenised"
    except UserError:
        pass
    if like is not None:
        try:
            mean = _tokenised(like)[1]
            rows = min(measure(config.data.prompts)[0], config.data.limit or float("inf"))
            return rows, mean, f"{rows:,.0f} prompts of {mean:.0f} tokens, as those in {like}"
        except UserError:
            pass
    rows, text = measure(config.data.prompts)
    if not rows:
        raise UserError(f"no prompts in {', '.join(map(str, config.data.prompts))}")
    mean = min(text / rows / _BYTES_PER_TEXT_TOKEN, config.data.max_prompt_tokens)
    count = min(rows, config.data.limit or rows)
    return (
        count,
        mean,
        (
            f"{count:,.0f} prompts of {mean:.0f} tokens (bytes of a row / {_BYTES_PER_TEXT_TOKEN}); "
            "--prompt-tokens corrects that"
        ),
    )


def _tokenised(run: Path) -> tuple[int, float]:
    """(prompts, mean tokens) of a run directory.

    Raises:
        UserError: it holds no finished prompts.
    """
    done = Dataset.open(RunDir(run).prompts, "prompts")
    lengths = done.read(0, ["prompt_ids"]).column("prompt_ids").combine_chunks()
    return done.rows, len(lengths.values) / max(1, len(lengths))


def _answer_tokens(config: Config, like: Path | None) -> tuple[float, str]:
    for run, whose in ((config.run.dir, "this run's"), (like, f"those in {like}")):
        found = [] if run is None else _answered(RunDir(run))
        if found:
            mean = sum(t for t, _ in found) / max(1, sum(n for _, n in found))
            return mean, f"answers of {mean:.0f} tokens, as {whose}"
    mean = config.rollout.max_new_tokens / 2
    return mean, f"answers of {mean:.0f} tokens (rollout.max_new_tokens / 2); --answer-tokens corrects that"


def _answered(run: RunDir) -> list[tuple[int, int]]:
    """(tokens, samples) of each generation that has its rollouts."""
    found = []
    for generation in run.generations():
        try:
            done = Dataset.open(run.generation(generation).rollouts, "rollouts")
            found.append((int(done.extra["tokens"]), done.rows))
        except (UserError, KeyError):
            continue
    return found
