"""How far a student is from its teacher along the student's own answers, before and after a run.

    python tools/own_answers.py runs/smollm2

Reads the answers to the held-out prompts that the run's evaluations have stored, at the start and at the end, and
prints for both: KL(teacher ‖ student) and KL(student ‖ teacher) over the full vocabulary in nats a token with standard
errors (clustered by answer), the teacher's NLL of the answers, their length, the share that ends and the share that
loops; at last the difference, with a 95 % interval over prompts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npd_ascend.config import Config, load_config
from npd_ascend.errors import UserError
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir

_BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Answers:
    """Greedy answers of one student: token ids of prompts and answers, which of them ended, and which end in a loop."""

    prompts: list[np.ndarray]
    responses: list[np.ndarray]
    ended: np.ndarray
    loops: np.ndarray


def read_answers(run: RunDir, name: str, limit: int) -> Answers:
    """Those of an evaluation of the run.

    Raises:
        UserError: the run has none.
    """
    folder = run.data("answers", evaluation=name)
    if not (folder / "manifest.json").is_file():
        raise UserError(f"{run.root}: it has no answers of the evaluation {name!r}; run its configuration to the end")
    prompts, answers = Dataset.open(run.eval_prompts, "prompts"), Dataset.open(folder, "rollouts")
    rows: list[tuple[Any, Any, bool, bool]] = []
    columns = ["prompt_index", "path", "response_ids", "finish_reason", "loops"]
    for shard in range(answers.shards):
        asked = prompts.read(shard, ["prompt_index", "prompt_ids"]).to_pylist()
        ids = {row["prompt_index"]: row["prompt_ids"] for row in asked}
        for row in answers.read(shard, columns).to_pylist():
            if row["path"] == 0:
                ended = row["finish_reason"] == "stop"
                rows.append((ids[row["prompt_index"]], row["response_ids"], ended, row["loops"]))
    asked_ids, answered, ended_all, loops = zip(*rows[:limit], strict=True)
    return Answers(
        [np.array(p, np.int32) for p in asked_ids],
        [np.array(r, np.int32) for r in answered],
        np.array(ended_all),
        np.array(loops),
    )


def compare(config: Config, students: dict[str, tuple[Path, Answers]], row_length: int) -> dict[str, list[Any]]:
    """Token by token figures of each student, as ``exposure.divergence.Tokens``."""
    from npd_ascend.exposure.divergence import PairScorer
    from npd_ascend.models.network import build
    from npd_ascend.models.spec import ModelSpec
    from npd_ascend.models.weights import load_hf
    from npd_ascend.ops.environments import resolve_device

    device = resolve_device(config.device)
    nets = [build(ModelSpec.from_folder(m), device, row_length) for m in (config.models.student, config.models.teacher)]
    load_hf(nets[1], config.models.teacher)
    scorer = PairScorer(nets[0], nets[1], micro_batch=1, chunk_rows=256)
    out = {}
    for name, (folder, answers) in students.items():
        load_hf(nets[0], folder)
        out[name] = scorer(answers.prompts, answers.responses)
    return out


def difference(before: list[Any], after: list[Any], field: str, seed: int = 0) -> tuple[float, float, float]:
    """Mean per token after minus before, and its 95 % interval: prompts are drawn with replacement (paired)."""
    sums = np.array([[getattr(x, field).sum() for x in part] for part in (before, after)], np.float64)
    tokens = np.array([[len(getattr(x, field)) for x in part] for part in (before, after)], np.float64)
    draws = np.random.default_rng(seed).integers(0, sums.shape[1], (_BOOTSTRAPS, sums.shape[1]))
    drawn = sums[:, draws].sum(-1) / tokens[:, draws].sum(-1)
    low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
    mean = sums.sum(-1) / tokens.sum(-1)
    return float(mean[1] - mean[0]), float(low), float(high)


def table(found: dict[str, list[Any]], answers: dict[str, Answers]) -> str:
    """Markdown."""
    from npd_ascend.exposure.measures import summarise

    lines = [
        "| student | answers | KL(T‖S) | KL(S‖T) | teacher's NLL | tokens | ended, % | loops, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, tokens in found.items():
        s, a = summarise(tokens), answers[name]
        lines.append(
            f"| {name} | {len(tokens)} | {s['kl_ts']:.3f} ± {s['kl_ts_se']:.3f} | {s['kl_st']:.3f} ± "
            f"{s['kl_st_se']:.3f} | {s['teacher_nll']:.3f} | {np.mean([len(r) for r in a.responses]):.0f} | "
            f"{100 * a.ended.mean():.0f} | {100 * a.loops.mean():.0f} |"
        )
    before, after = found.values()
    cells = []
    for field in ("kl_ts", "kl_st"):
        mean, low, high = difference(before, after, field)
        cells.append(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    return "\n".join([*lines, f"| difference, 95 % | | {cells[0]} | {cells[1]} | | | | |"])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory, finished")
    parser.add_argument("--limit", type=int, default=1000, help="held-out prompts")
    parser.add_argument("--row-length", type=int, default=512)
    args = parser.parse_args()
    try:
        run = RunDir(args.run)
        config = load_config(run.config)
        students = {
            name: (folder, read_answers(run, name, args.limit))
            for name, folder in (("start", config.models.student), ("end", run.export))
        }
        found = compare(config, students, args.row_length)
    except UserError as e:
        raise SystemExit(f"error: {e}") from None
    print(table(found, {name: answers for name, (_, answers) in students.items()}))


if __name__ == "__main__":
    main()
