"""A generation of 1.2 million samples through the executor: seconds and memory of every process, kill and resume.

    python benchmarks/scale_run.py [--shards 586] [--folder DIR] [--keep]

Prompts, rollouts, scores and top-k are synthetic, in the real formats and with the fingerprints that the executor
expects, so that `npd select` and `npd pack` are the real commands, engines left out. Response lengths are log-normal
(median 346 tokens, mean 500). To spare the disk, token values are all alike and the top-k shards are one shard under
many names (hard links); what select, pack and the planning part of train do does not depend on either.

Then: select and pack are killed (SIGKILL) half-way and run again, and must end with the same bytes; and train's
corpus, plans and reader are opened and read from. "RSS" is the peak of resident memory of the largest process,
"private" is without pages of files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from select_pack_scale import ragged
from store import VOCAB, K, annotation, split

from npd_ascend.config import dump_config, load_config
from npd_ascend.config.schema import TrainConfig
from npd_ascend.ops.environments import resolve_device
from npd_ascend.pipeline.steps import StepBuilder
from npd_ascend.recipes import needs, to_store
from npd_ascend.store.atomic import write_sealed
from npd_ascend.store.dataset import Dataset
from npd_ascend.store.layout import RunDir
from npd_ascend.store.topk_codec import TopKFormat
from npd_ascend.store.topk_shard import TopKReader, write_topk
from npd_ascend.train.corpus import Corpus, EpochPlan
from npd_ascend.train.reader import Reader

ROOT = Path(__file__).resolve().parents[1]
SHARD, ROW, GROUP = 2048, 32768, 64


def settings(root: Path) -> list[str]:
    """Overrides of configs/mini.yaml: the paper's shape, 2 of its epochs."""
    given = {
        "run.dir": root,
        "rollout.shard_size": SHARD,
        "pack.row_length": ROW,
        "train.global_batch": GROUP,
        "train.epochs": 2,
        "sync.refreshes": 0,
        "select.lower": 0.0,
        "select.upper": 0.8,
        "select.upper_quantile": "null",
    }
    return [f"{k}={v}" for k, v in given.items()]


def make(root: Path, shards: int) -> None:
    """All datasets that come before select."""
    config = load_config(ROOT / "configs/mini.yaml", settings(root))
    run = RunDir(root)
    run.write_config(dump_config(config))
    steps = StepBuilder(config, run, resolve_device(config.device))
    rng = np.random.default_rng(0)
    lengths = np.clip(346 * np.exp(0.9 * rng.standard_normal(SHARD)), 1, 16384).astype(np.int64)
    prompt = rng.integers(20, 400, SHARD)
    null, text = pa.nulls(SHARD, pa.list_(pa.int32())), pa.nulls(SHARD, pa.string())
    ones, zeros = np.ones(int(lengths.sum()), np.int32), np.zeros(int(lengths.sum()), np.float32)
    asked, answered, noted = (
        ragged(prompt, np.ones(int(prompt.sum()), np.int32)),
        ragged(lengths, ones),
        ragged(lengths, zeros),
    )
    finish = pa.array(np.where(lengths > 4096, "length", "stop")).dictionary_encode()

    def prompts(s: int) -> pa.Table:
        index = np.arange(s * SHARD, (s + 1) * SHARD)
        return pa.table(
            {
                "prompt_index": index,
                "prompt_id": index,
                "prompt_ids": asked,
                "reference_ids": null,
                "label_ids": null,
                "answer": text,
                "text": text,
            }
        )

    def rollouts(s: int) -> pa.Table:
        index = np.arange(s * SHARD, (s + 1) * SHARD)
        return pa.table(
            {
                "sample_id": index * 7 + 1,
                "prompt_index": index,
                "path": np.zeros(SHARD, np.int8),
                "response_ids": answered,
                "logprobs": noted,
                "label_ids": null,
                "finish_reason": finish,
            }
        )

    def scores(s: int, name: str) -> pa.Table:
        one = np.random.default_rng([s, 1])
        student, gap, uncond = one.uniform(0.3, 0.6, SHARD), one.normal(0.35, 0.18, SHARD), one.uniform(0.5, 3, SHARD)
        ratio = {"scores_teacher": student + gap, "scores_student": student}.get(name, 1.0)
        return pa.table(
            {
                "sample_id": np.arange(s * SHARD, (s + 1) * SHARD) * 7 + 1,
                "tokens": lengths,
                "nll": ratio * uncond,
                "entropy": np.zeros(SHARD),
            }
        )

    def write(dataset: Dataset, table, **extra) -> None:
        for _ in dataset.write_tables((s, table(s)) for s in range(shards)):
            pass
        dataset.finish(shards, **extra)

    write(
        steps.step("prepare").outputs[0],
        prompts,
        longest_prompt=5,
        eos_token_ids=[2],
        header_ids=[1],
        end_token_id=2,
        chat_template=None,
        special_tokens={},
    )
    write(steps.step("rollout", 0).outputs[0], rollouts)
    made = [
        d
        for model in ("teacher", "student")
        for d in steps.step(f"annotate_{model}", 0, quantities=to_store(needs(config), model)).outputs
    ]
    for dataset in made:
        if dataset.kind == "scores":
            write(dataset, lambda s, name=dataset.folder.name: scores(s, name))
    (topk,) = (d for d in made if d.kind == "topk")
    write_topk(topk, 0, TopKFormat(K, VOCAB), split(annotation(rng, int(lengths.sum())), lengths))
    first = json.loads((topk.folder / "shard-00000.json").read_text())
    del first["seal"]
    for s in range(1, shards):
        os.link(topk.path(0), topk.path(s))
        write_sealed(topk.folder / f"shard-{s:05d}.json", first | {"index": s})
    topk.finish(shards)


def command(root: Path, stage: str) -> list[str]:
    sets = [x for s in settings(root) for x in ("--set", s)]
    return [sys.executable, "-m", "npd_ascend.cli", "run", str(ROOT / "configs/mini.yaml"), "--stage", stage, *sets]


def descendants(pid: int) -> list[int]:
    out = [pid]
    for p in out:
        try:
            out += map(int, Path(f"/proc/{p}/task/{p}/children").read_text().split())
        except OSError:
            continue
    return out


def watch(process: subprocess.Popen, until=lambda: False) -> tuple[float, float]:
    """Seconds until a command ends (or ``until`` holds), and the peak RSS in MB of its largest process."""
    start, peak = time.perf_counter(), 0
    while process.poll() is None and not until():
        for pid in descendants(process.pid):
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            peak = max([peak, *(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))])
        time.sleep(0.05)
    return time.perf_counter() - start, peak / 1024


def stage(root: Path, name: str, until=lambda: False) -> tuple[float, float]:
    process = subprocess.Popen(command(root, name), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    figures = watch(process, until)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.5)  # its child is killed by the kernel
    elif process.returncode:
        raise SystemExit(process.stderr.read().decode())  # type: ignore[union-attr]
    return figures


def plan(root: Path) -> None:
    """What train opens before its first step, and a hundred micro-batches."""
    g = RunDir(root).generation(0)
    start = time.perf_counter()
    corpus = Corpus(
        Dataset.open(RunDir(root).prompts, "prompts"),
        Dataset.open(g.rollouts, "rollouts"),
        Dataset.open(g.selection, "selection"),
    )
    packs = Dataset.open(g.packs, "packs")
    plans = [EpochPlan.read(packs, e) for e in range(packs.shards)]
    topk = TopKReader(Dataset.open(g.topk, "topk"))
    reader = Reader(corpus, plans, topk, TrainConfig(global_batch=GROUP, micro_batch=1), ROW, 0, VOCAB)
    opened, tokens = time.perf_counter(), 0
    batches = min(2, reader.steps[0])
    for b in range(batches):
        for m in reader.micro_batches(0, b):
            tokens += m.tokens
    read = time.perf_counter() - opened
    memory = {
        x.split(":")[0]: int(x.split()[1]) // 1024
        for x in Path("/proc/self/status").read_text().splitlines()
        if x.startswith(("VmHWM", "RssAnon"))
    }
    print(
        f"| train: corpus, {len(plans)} plans, top-k opened | {opened - start:.1f} | {memory['VmHWM']:,} "
        f"({memory['RssAnon']:,} private) | then {tokens / read:,.0f} response tokens/s |",
        flush=True,
    )


def seals(folder: Path) -> list[str]:
    return [r["sha256"] for r in json.loads((folder / "manifest.json").read_text())["shards"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=586)
    parser.add_argument("--folder", type=Path, help="where the run is made; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="leave the run where it is")
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        return plan(args.plan)
    parent = args.folder or Path(tempfile.mkdtemp())
    root = parent / "run"
    g = RunDir(root).generation(0)
    if not g.topk.is_dir():
        start = time.perf_counter()
        make(root, args.shards)
        print(f"made in {time.perf_counter() - start:.0f} s")
    for folder in (g.selection, g.packs):
        shutil.rmtree(folder, ignore_errors=True)
    print(f"| {args.shards * SHARD:,} samples | seconds | peak MB of a process | |\n|---|---|---|---|")
    for name, folder in (("select", g.selection), ("pack", g.packs)):
        seconds, mb = stage(root, name)
        extra = json.loads((folder / "manifest.json").read_text())["extra"]
        facts = {
            k: extra[k]
            for k in ("keep_rate", "density", "imbalance", "dropped_tokens", "truncated_tokens")
            if k in extra
        }
        print(f"| npd {name}, start of both processes included | {seconds:.1f} | {mb:,.0f} | {facts} |", flush=True)
    for name, folder in (("select", g.selection), ("pack", g.packs)):
        whole = seals(folder)
        shutil.rmtree(folder)
        half = len(whole) // 2
        stage(root, name, lambda: (folder / f"shard-{half - 1:05d}.json").exists())  # noqa: B023
        left = len(list(folder.glob("shard-*.json")))
        seconds, mb = stage(root, name)
        print(
            f"| {name} again after SIGKILL with {left} of {len(whole)} shards | {seconds:.1f} | {mb:,.0f} "
            f"| {'the same bytes' if seals(folder) == whole else 'OTHER BYTES'} |",
            flush=True,
        )
    subprocess.run([sys.executable, __file__, "--plan", str(root)], check=True)
    if not args.keep:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
