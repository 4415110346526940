"""A plausible small run, made with the store's own writers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from npd_ascend.config.load import dump_config, parse_config
from npd_ascend.select.registry import SCORES as ALL_SCORES
from npd_ascend.store.atomic import write_json
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import write_topk

WORDS = (
    "north east south west so we go to the left then right 3 7 12 because wall goal reached = + answer is "
    "therefore first second 迷宫 出口 <b>bold</b> & done ."
).split()
K, V, ROW = 4, 64, 512
SHARDS, PER_SHARD = 2, 200
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Runs fabricated so far by their options."""
    folder, runs = tmp_path_factory.mktemp("made"), {}

    def get(**options):
        key = str(sorted(options.items()))
        if key not in runs:
            runs[key] = fabricate(folder / str(len(runs)), **options)
        return runs[key]

    return get


@pytest.fixture
def make_run(tmp_path, made):
    """Returns ``make(**options)``: a run directory of one's own and what is in it (see ``fabricate``)."""

    def make(**options):
        base, root = made(**options), tmp_path / "maze-run"
        shutil.copytree(base.root, root, dirs_exist_ok=True)
        config = parse_config(
            json.loads(
                json.dumps(base.config.model_dump(mode="json", exclude_unset=True)).replace(str(base.root), str(root))
            ),
            "test",
        )
        run = RunDir(root)
        run.write_config(dump_config(config))
        return SimpleNamespace(root=root, run=run, config=config, generations=base.generations)

    return make


def fabricate(
    root: Path, seed: int = 0, generations: int = 2, steps: int = 60, keep: float = 0.96, finished: bool = True
):
    """Writes a run of ``generations`` x ``steps`` optimiser steps; returns its figures as plain values."""
    rng = np.random.default_rng(seed)
    run = RunDir(root)
    tokenizer = root / "inputs" / "student"
    write_tokenizer(tokenizer)
    config = parse_config(
        {
            "run": {"dir": str(root)},
            "models": {"teacher": str(root / "inputs" / "teacher"), "student": str(tokenizer)},
            "data": {"prompts": ["prompts.jsonl"], "answer_field": "answer"},
            "rollout": {"max_new_tokens": 120},
            "annotate": {"k": K},
            "pack": {"row_length": ROW},
            "train": {"epochs": 2.0 * max(generations, 1), "global_batch": 8, "lr": 1e-4},
            "evaluate": {"prompts": ["held_out.jsonl"]},
        },
        "test",
    )
    run.write_config(dump_config(config))
    facts = SimpleNamespace(root=root, config=config, generations=[])
    _prompts(run)
    for g in range(generations):
        facts.generations.append(_generation(run, g, rng, keep))
    _metrics(run, generations, steps, rng)
    names = ["start", *[f"refresh {g}" for g in range(1, generations)], "end"]
    for i, name in enumerate(names if finished else names[:1]):
        right = 208 + 26 * i
        p, half = right / 400, 1.96 * (right / 400 * (1 - right / 400) / 400) ** 0.5
        write_json(
            run.evaluations / f"{name.replace(' ', '-')}.json",
            {
                "name": name,
                "n": 400,
                "correct": right,
                "accuracy": p,
                "interval": [p - half, p + half],
                "pass_at": {},
                "truncated": (9 - i) / 400,
                "mean_tokens": 41.5 + i,
                "fingerprint": "f",
                "samples": [
                    {
                        "prompt": f"From cell {j} to cell {j + 9}?",
                        "answer": str(j),
                        "correct": j < i + 2,
                        "response": f"{j} north {j + 1} east {HOSTILE} {j + 9}",
                    }
                    for j in range(5)
                ],
            },
        )
    run.write_state(status="finished" if finished else "running", started=1.79e9, ended=1.79e9 + 400)
    return facts


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer in the files that transformers reads."""
    words = [HOSTILE, *WORDS]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [],
                "normalizer": None,
                "pre_tokenizer": {"type": "WhitespaceSplit"},
                "post_processor": None,
                "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "."},
            }
        )
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def _prompts(run: RunDir) -> None:
    data = Dataset(run.prompts, "prompts", "p")
    for s in range(SHARDS):
        index = np.arange(s * PER_SHARD, (s + 1) * PER_SHARD)
        data.write_table(
            s,
            pa.table(
                {
                    "prompt_index": index,
                    "prompt_id": index,
                    "prompt_ids": pa.array([[1, 2, 3]] * PER_SHARD),
                    "reference_ids": pa.nulls(PER_SHARD, pa.list_(pa.int32())),
                    "label_ids": pa.nulls(PER_SHARD, pa.list_(pa.int32())),
                    "answer": pa.array([str(i % 9) for i in index]),
                    "text": pa.array([f"From cell {i} to cell {i * 7 % 64}: which way? {HOSTILE}" for i in index]),
                }
            ),
        )
    data.finish(SHARDS)


def _generation(run: RunDir, g: int, rng, keep: float) -> SimpleNamespace:
    folder = run.generation(g)
    n = SHARDS * PER_SHARD
    lengths = np.clip(rng.gamma(4, 11 + 2 * g, n).astype(int) + 1, 1, 120)
    delta = np.where(rng.random(n) < keep, rng.gamma(2.0, 0.08, n).clip(0, 0.79), 0.0)
    out = rng.permutation(np.flatnonzero(delta == 0.0))
    delta[out[::3]] = 0.85 + rng.random(len(out[::3])) * 0.4
    rest = np.setdiff1d(out, out[::3])
    delta[rest] = -0.05 - 0.2 * rng.random(len(rest))
    zone = np.where(delta < 0, "degenerate", np.where(delta > 0.8, "disconnect", "proximal"))
    kept = zone == "proximal"
    finish = np.where(lengths >= 120, "length", "stop")
    samples = {
        k: Dataset(f, k.split(" ")[0], f"{k}{g}")
        for k, f in (
            ("rollouts", folder.rollouts),
            ("selection", folder.selection),
            ("topk", folder.topk),
            *((f"scores {q}", run.data(q, g)) for q in ALL_SCORES),
        )
    }
    codec = TopKFormat(K, V, 12)
    entropies, mass = [], 0.0
    for s in range(SHARDS):
        rows = slice(s * PER_SHARD, (s + 1) * PER_SHARD)
        ids = np.arange(n)[rows]
        tokens = [rng.integers(0, len(WORDS), t).astype(np.int32) for t in lengths[rows]]
        samples["rollouts"].write_table(
            s,
            pa.table(
                {
                    "sample_id": ids,
                    "prompt_index": ids,
                    "path": pa.array([0] * PER_SHARD, pa.int8()),
                    "response_ids": pa.array([t.tolist() for t in tokens]),
                    "logprobs": pa.array([[-0.1] * len(t) for t in tokens], pa.list_(pa.float32())),
                    "label_ids": pa.nulls(PER_SHARD, pa.list_(pa.int32())),
                    "finish_reason": pa.array(finish[rows].tolist()),
                }
            ),
        )
        top = [_annotation(rng, len(t)) for t in tokens]
        entropies += [float(t.entropy.mean()) for t in top]
        mass += sum(float(np.exp(t.logprobs).sum()) for t in top)
        write_topk(samples["topk"], s, codec, top)
        for name in ALL_SCORES:
            nll = 0.6 * (0.5 + (delta[rows] if name == "scores_teacher" else np.zeros(PER_SHARD)))
            samples[f"scores {name}"].write_table(
                s,
                pa.table(
                    {
                        "sample_id": ids,
                        "tokens": lengths[rows],
                        "nll": nll if name.startswith("scores") else np.full(PER_SHARD, 0.6),
                        "entropy": np.array(entropies[-PER_SHARD:], np.float32),
                    }
                ),
            )
        samples["selection"].write_table(
            s,
            pa.table(
                {
                    "sample_id": ids,
                    "keep": kept[rows],
                    "reason": pa.array(np.where(kept, "kept", zone)[rows].tolist()),
                    "zone": pa.array(zone[rows].tolist()),
                    "weight": kept[rows].astype(np.float32),
                    "metric": delta[rows],
                    "ifd_teacher": delta[rows] + 0.5,
                    "ifd_student": np.full(PER_SHARD, 0.5),
                    "delta_ifd": delta[rows],
                }
            ),
        )
    extras = {
        "rollouts": {"truncated": int((lengths >= 120).sum())},
        "selection": {
            "filter": "delta_ifd",
            "on_delta": True,
            "bounds": {"lower": 0.0, "upper": 0.8},
            "zone_upper": 0.8,
            "note": None,
        },
    }
    for name, data in samples.items():
        data.finish(SHARDS, **extras.get(name, {}))
    packs = Dataset(folder.packs, "packs", f"packs{g}")
    for epoch in range(2):
        rows, room = [[]], ROW
        for i in rng.permutation(np.flatnonzero(kept)):
            if lengths[i] + 3 > room:
                rows.append([])
                room = ROW
            rows[-1].append(int(i))
            room -= lengths[i] + 3
        packs.write_table(
            epoch,
            pa.table(
                {
                    "samples": pa.array(rows),
                    "prompt_tokens": pa.array([[3] * len(r) for r in rows]),
                    "response_tokens": pa.array([[int(lengths[i]) for i in r] for r in rows]),
                }
            ),
        )
    used = int((lengths[kept] + 3).sum())
    packs.finish(
        2,
        rows=len(rows),
        lower_bound_rows=-(-used // ROW),
        row_length=ROW,
        samples=int(kept.sum()),
        tokens=used,
        dropped_samples=0,
        truncated_samples=0,
        imbalance=0.013,
        slices=2,
    )
    return SimpleNamespace(
        lengths=lengths,
        zone=zone,
        kept=kept,
        delta=delta,
        finish=finish,
        pack_tokens=used,
        pack_rows=len(rows),
        mass=mass,
        topk_bytes=sum(p.stat().st_size for p in folder.topk.glob("*.topk")),
    )


def _annotation(rng, T: int) -> TopK:
    scale = rng.gamma(2.0, 1.2, (T, 1)) + 0.4
    logits = rng.normal(size=(T, V)) * scale
    logz = np.log(np.exp(logits).sum(-1))
    lp = logits - logz[:, None]
    ids = np.argsort(-lp, -1)[:, :K]
    top = np.take_along_axis(lp, ids, 1)
    return TopK(
        ids.astype(np.int32),
        top.astype(np.float32),
        logz.astype(np.float32),
        top[:, 0].astype(np.float32),
        -(np.exp(lp) * lp).sum(-1).astype(np.float32),
    )


def _metrics(run: RunDir, generations: int, steps: int, rng) -> None:
    """Rows as the stages write them, with times of their own rather than the clock's."""
    now, rows, total = 1.79e9, [], generations * steps

    def stage(name, g, seconds, tokens=0, samples=0, busy=None, **spent):
        nonlocal now
        now += seconds
        rows.append(
            {
                "kind": "stage",
                "time": now,
                "stage": name,
                "generation": g,
                "seconds": seconds,
                "busy": busy or seconds,
                "tokens": tokens,
                "samples": samples,
                **spent,
            }
        )

    stage("prepare", -1, 3.0, samples=400)
    for g in range(generations):
        stage("rollout", g, 38.0 if g == 0 else 21.0, 18000, 400, 20.0)
        stage("evaluate", g, 6.0, 17000, 400, 5.0)
        stage("annotate_teacher", g, 14.0, 21000, 400, 6.0)
        stage("annotate_student", g, 9.0, 21000, 400, 3.0)
        stage("select", g, 0.4, 0, 400)
        stage("pack", g, 0.3, 0, 400)
        for i in range(steps):
            step = g * steps + i + 1
            kd = 0.25 + 0.9 * np.exp(-step / 30) + 0.03 * rng.normal() + (0.1 if g and i < 5 else 0)
            ce = 0.30 + 0.4 * np.exp(-step / 40) + 0.02 * rng.normal()
            rows.append(
                {
                    "kind": "train",
                    "time": now + i,
                    "step": step,
                    "progress": 2.0 * generations * step / total,
                    "generation": g,
                    "lr": 1e-6 + 4.95e-5 * (1 + np.cos(np.pi * step / total)),
                    "kd": kd,
                    "ce": ce,
                    "loss": 0.9 * kd + 0.1 * ce,
                    "grad_norm": 0.4 + abs(rng.normal()) * 0.25,
                    "tokens": 3900,
                    "seconds": 0.9,
                }
            )
            if i % 10 == 0 or i == steps - 1:
                rows.append(
                    {
                        "kind": "lag",
                        "time": now + i,
                        "step": step,
                        "generation": g,
                        "progress": 2.0 * generations * step / total,
                        "forward": 0.085 * (i / steps) ** 0.7,
                        "reverse": 0.07 * (i / steps) ** 0.7,
                    }
                )
        stage("train", g, 60.0, 3900 * steps, steps, 54.0, start=2.0, compile=4.0)
        if g + 1 < generations:
            rows.append(
                {
                    "kind": "refresh",
                    "time": now,
                    "step": (g + 1) * steps,
                    "progress": 2.0 * (g + 1),
                    "generation": g + 1,
                    "reason": "epoch",
                }
            )
    stage("evaluate", generations, 6.0, 17000, 400, 5.0)
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows))
