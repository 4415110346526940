"""A few answers to look at: tokens with the teacher's entropy behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from npd_ascend.arrays import Array
from npd_ascend.config.schema import Config
from npd_ascend.data.tokenizer import load_tokenizer
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_shard import TopKReader

_MAX_TOKENS = 400
_MAX_PROMPT = 800
Decode = Callable[[list[int]], str]


@dataclass
class Token:
    """A piece of text (one token, or several that make one character) and what the teacher thought of it."""

    text: str
    entropy: float | None
    probability: float | None
    heat: float


@dataclass
class Sample:
    """One answer.

    Attributes:
        tokens: the first tokens; ``more`` says how many follow.
        zone, reason, delta: as selected; None when there is no selection.
    """

    prompt: str
    answer: str | None
    tokens: list[Token]
    more: int
    length: int
    path: int
    finish: str
    zone: str | None
    reason: str | None
    delta: float | None


@dataclass
class Gallery:
    """Samples of one generation and the entropy [nats] that is shown in full colour."""

    generation: int
    samples: list[Sample]
    scale: float
    decoded: bool


def gallery(run: RunDir, config: Config | None, count: int, problems: list[str]) -> Gallery | None:
    """Picks and reads ``count`` answers of the latest generation whose rollouts are finished.

    All zones are represented where they occur. Returns None when there are no rollouts.
    """
    for index in reversed(run.generations()):
        if (run.generation(index).rollouts / "manifest.json").is_file() and count:
            try:
                return _gallery(run, index, config, count, problems)
            except UserError as e:
                problems.append(f"samples of generation {index}: {e}")
    return None


def pick(zone: Array, delta: Array, count: int) -> list[int]:
    """Ordinals worth a look: both outer zones at their extremes, the rest spread over the proximal zone.

    Args:
        zone: [N] names.
        delta: [N] Δ-IFD, NaN where undefined.
        count: how many.
    """

    def ordered(name: str) -> list[int]:
        at = np.flatnonzero((zone == name) & np.isfinite(delta))
        return list(map(int, at[np.argsort(delta[at], kind="stable")]))

    low, mid, high = ordered("degenerate"), ordered("proximal"), ordered("disconnect")
    outer = (high[::-1][:1] + low[:1])[: max(count - 1, 0)]
    room = count - len(outer)
    spread: Iterable[float] = np.linspace(0, len(mid) - 1, min(room, len(mid))) if mid else ()
    chosen = [mid[i] for i in sorted({int(q) for q in spread})] + outer
    rest = (i for i in range(len(zone)) if i not in set(chosen))
    while len(chosen) < min(count, len(zone)):
        chosen.append(next(rest))
    return chosen


def pieces(ids: list[int], decode: Decode) -> list[tuple[str, int]]:
    """Texts of consecutive tokens and how many tokens each takes: more than one where a character is spread."""
    out: list[tuple[str, int]] = []
    before, start = "", 0
    for end in range(1, len(ids) + 1):
        # Decoded with what comes before, as a lone token loses its leading space in many tokenizers.
        text = decode(ids[:end])
        if text.endswith("\ufffd") and end < len(ids) and end - start < 4:
            continue
        out.append((text[len(before) :] if text.startswith(before) else decode(ids[start:end]), end - start))
        before, start = text, end
    return out


def _gallery(run: RunDir, index: int, config: Config | None, count: int, problems: list[str]) -> Gallery:
    g = run.generation(index)
    rollouts = Dataset.open(g.rollouts, "rollouts")
    selection = _open(g.selection, "selection")
    table = selection.read_all(["zone", "reason", "delta_ifd"]) if selection else None
    if table is not None:
        zone = table["zone"].cast(pa.string()).to_numpy()
        chosen = pick(zone, table["delta_ifd"].to_numpy(), count)
    else:
        chosen = sorted({int(i) for i in np.linspace(0, rollouts.rows - 1, min(count, rollouts.rows))})
    topk = _open(g.topk, "topk")
    reader = TopKReader(topk) if topk else None
    prompts = run.prompts_of(index)
    decode = decoder_of(config, problems)
    first = np.concatenate([[0], np.cumsum([r["rows"] for r in rollouts.manifest["shards"]])])
    raw = []
    for ordinal in chosen:
        shard = int(np.searchsorted(first, ordinal, side="right")) - 1
        row = rollouts.read(shard).slice(ordinal - int(first[shard]), 1).to_pylist()[0]
        raw.append((ordinal, row, prompt_of(prompts, row["prompt_index"]), reader.read(ordinal) if reader else None))
    entropies = np.concatenate([t.entropy for *_, t in raw if t is not None] or [np.zeros(0)])
    scale = max(float(np.quantile(entropies, 0.98)), 0.1) if len(entropies) else 1.0
    samples = []
    for ordinal, row, (text, answer), top in raw:
        chosen_row = {k: table[k][ordinal].as_py() for k in ("zone", "reason", "delta_ifd")} if table else {}
        ids = list(row["response_ids"] or [])
        samples.append(
            Sample(
                text[:_MAX_PROMPT] + ("…" if len(text) > _MAX_PROMPT else ""),
                answer,
                _tokens(ids[:_MAX_TOKENS], decode, top, scale),
                max(len(ids) - _MAX_TOKENS, 0),
                len(ids),
                row["path"],
                row["finish_reason"],
                chosen_row.get("zone"),
                chosen_row.get("reason"),
                chosen_row.get("delta_ifd"),
            )
        )
    return Gallery(index, samples, scale, decode is not None)


def _tokens(ids: list[int], decode: Decode | None, top: Any, scale: float) -> list[Token]:
    parts = pieces(ids, decode) if decode else [(str(i) + " ", 1) for i in ids]
    out, at = [], 0
    for text, n in parts:
        known = top is not None and at + n <= len(top)
        entropy = float(top.entropy[at : at + n].max()) if known else None
        probability = float(np.exp(top.sampled[at : at + n].sum())) if known else None
        out.append(Token(text, entropy, probability, min((entropy or 0.0) / scale, 1.0)))
        at += n
    return out


def prompt_of(folder: Path, prompt_index: int) -> tuple[str, str | None]:
    """Text of a prompt and the answer that the data give; its number, where the prompts cannot be read."""
    prompts = _open(folder, "prompts")
    if prompts is not None:
        for shard in range(prompts.shards):
            table = prompts.read(shard, ["prompt_index", "text", "answer"])
            at = pc.index(table["prompt_index"], prompt_index).as_py()
            if at >= 0:
                return table["text"][at].as_py() or "", table["answer"][at].as_py()
    return f"prompt {prompt_index}", None


def _open(folder: Any, kind: str) -> Dataset | None:
    return Dataset.open(folder, kind) if (folder / "manifest.json").is_file() else None


def decoder_of(config: Config | None, problems: list[str]) -> Decode | None:
    """Ids to text, special tokens and all; None where the tokenizer cannot be read."""
    if config is None:
        return None
    folder = config.models.tokenizer or config.models.student
    try:
        tokenizer = load_tokenizer(folder, config.models.trust_remote_code)
    except UserError as e:
        problems.append(f"samples are shown as token ids: {e}")
        return None
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
