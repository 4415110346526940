"""Training tokens/s of the compiled step against a plain torch trainer: same weights, rows, loss, threads, fp32.

    python benchmarks/train_vs_torch.py [MODEL] [--rounds 7] [--steps 8] [--lengths chat]

Run it with the interpreter of the MindSpore environment. The torch side is eager: packed rows with a block-diagonal
mask made once a micro-batch, scaled_dot_product_attention with grouped queries, logits at response positions only, CE
and the top-k forward KL in closed form, gradients by autograd, clipping, fused AdamW. Each side is a process; rounds
alternate. ``ratio`` is the median over rounds of torch's seconds to ours; ``cpu_ratio`` the same of CPU seconds, which
other work on the machine disturbs less. ``difference`` is the largest of their losses over the first steps, relative.
Peak memory is each process's high-water mark after all rounds, libraries, loading and compilation included; ``start``
is what it holds before it compiles and steps: libraries and weights, and on our side the optimiser's state.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rounds import ROOT, Side, interpreter, serve

ROW, LR = 512, 1e-4
ROWS_OF = ("input_ids", "position_ids", "segment_ids")
KD, CLIP, BETAS, DECAY = 0.9, 1.0, (0.9, 0.95), 0.1


def write_batches(model: Path, out: Path, lengths: str, rows: int, batches: int, chunk_rows: int) -> None:
    """Micro-batches as both sides read them."""
    from random_samples import Samples, chat_lengths, mini_lengths

    from npd_ascend.config.schema import TrainConfig
    from npd_ascend.rows.bfd import best_fit_decreasing
    from npd_ascend.train.reader import Reader

    config = json.loads((model / "config.json").read_text())
    found = {"mini": mini_lengths, "chat": chat_lengths}[lengths](800)
    samples = Samples(found, config["vocab_size"])
    bins = best_fit_decreasing(samples.sizes + samples.prompt_sizes, ROW)
    chosen = np.random.default_rng(0).permutation(len(bins))[: batches * rows]  # the fullest rows come first
    plan = samples.plan([bins[i] for i in chosen])
    settings = TrainConfig(global_batch=rows, micro_batch=rows, vocab_chunk_rows=chunk_rows)
    reader = Reader(samples, [plan], samples, settings, ROW, 0, config["vocab_size"])  # type: ignore[arg-type]
    made = [next(reader.micro_batches(0, b)) for b in range(len(plan) // rows)]
    inputs = [
        {
            **{name: getattr(m.rows, name) for name in ROWS_OF},
            "positions": m.positions,
            **{name: getattr(m.inputs, name) for name in reader.names},
        }
        for m in made
    ]
    np.savez(
        out,
        tokens=[m.tokens for m in made],
        row_tokens=[m.rows.tokens for m in made],
        longest=reader.longest,
        chunk=reader.chunk,
        **{f"{i} {name}": a for i, arrays in enumerate(inputs) for name, a in arrays.items()},
    )


def read_batches(path: Path) -> tuple[list[int], list[dict[str, np.ndarray]]]:
    file = np.load(path)
    tokens, names = file["tokens"].tolist(), [n.removeprefix("0 ") for n in file.files if n.startswith("0 ")]
    return tokens, [{name: file[f"{i} {name}"] for name in names} for i in range(len(tokens))]


def mindspore_side(model: Path, data: Path, steps: int) -> None:
    from npd_ascend.config.job import Device
    from npd_ascend.config.schema import TrainConfig
    from npd_ascend.models.compile_cache import Graphs
    from npd_ascend.models.network import build
    from npd_ascend.models.spec import ModelSpec
    from npd_ascend.models.weights import load_hf
    from npd_ascend.objectives.inputs import LossInputs
    from npd_ascend.rows.collate import RowBatch
    from npd_ascend.train.reader import MicroBatch
    from npd_ascend.train.step import Trainer

    tokens, arrays = read_batches(data)
    nothing, longest, chunk = np.empty(0, np.int64), int(np.load(data)["longest"]), int(np.load(data)["chunk"])
    batches = [
        MicroBatch(
            RowBatch(*(a.pop(name) for name in ROWS_OF), nothing, nothing, longest),
            a.pop("positions"),
            LossInputs(**a),
            t,
            nothing,
        )
        for a, t in zip(arrays, tokens, strict=True)
    ]
    rows = len(batches[0].rows.input_ids)
    settings = TrainConfig(global_batch=rows, micro_batch=rows, clip=CLIP, weight_decay=DECAY)
    net = build(ModelSpec.from_folder(model), Device(), ROW)
    load_hf(net, model)
    trainer = Trainer(net, settings, chunk)
    start = memory("VmRSS")
    trainer.compile(batches[0], Graphs("train", None, {}))
    count = iter(range(1, 10**9))

    def step() -> float:
        n = next(count)
        i = (n - 1) % len(batches)
        loss = trainer.accumulate(batches[i], tokens[i])
        trainer.update(LR, n)
        return loss / tokens[i]

    loop(step, tokens, steps, start)


def loop(step: Any, tokens: list[int], steps: int, start: float) -> None:
    def timed() -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        return time.perf_counter() - start, time.process_time() - cpu

    serve(
        {
            "losses": lambda: [step() for _ in range(len(tokens))],
            "round": timed,
            "memory": lambda: (start, memory("VmHWM")),
        }
    )


def memory(kind: str) -> float:
    """GB of this process in memory: ``VmRSS`` now, ``VmHWM`` at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0]) * 1024 / 1e9


def torch_side(model: Path, data: Path, steps: int) -> None:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    c = json.loads((model / "config.json").read_text())
    w = {k: torch.nn.Parameter(v.float()) for k, v in load_file(model / "model.safetensors").items()}
    heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
    dim, eps = c["hidden_size"] // heads, c["rms_norm_eps"]
    assert c["tie_word_embeddings"] != ("lm_head.weight" in w)
    # One product for q, k, v and one for gate and up, as the other side has them.
    for i in range(c["num_hidden_layers"]):
        a, m = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        for kind in ("weight", "bias")[: 1 + (f"{a}q_proj.bias" in w)]:
            w[f"{a}qkv.{kind}"] = torch.nn.Parameter(torch.cat([w.pop(f"{a}{x}_proj.{kind}").data for x in "qkv"]))
        w[f"{m}gate_up"] = torch.nn.Parameter(torch.cat([w.pop(f"{m}{x}_proj.weight").data for x in ("gate", "up")]))
    decays = [p for p in w.values() if p.ndim > 1]
    plain = [p for p in w.values() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=LR,
        betas=BETAS,
        eps=1e-8,
        fused=True,
    )
    frequencies = c["rope_theta"] ** (-torch.arange(0, dim, 2).float() / dim)
    causal = torch.ones(ROW, ROW).tril().bool()

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def hidden(ids: torch.Tensor, position: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
        angle = (position[..., None] * frequencies).repeat(1, 1, 2)[:, None]
        cos, sin = angle.cos(), angle.sin()
        seen = (segment[:, :, None] == segment[:, None]) & causal
        mask = torch.where(seen, 0.0, -1e9)[:, None]
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for i in range(c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            h = F.rms_norm(x, x.shape[-1:], w[f"{at}input_layernorm.weight"], eps)
            h = F.linear(h, w[f"{at}self_attn.qkv.weight"], w.get(f"{at}self_attn.qkv.bias"))
            h = h.unflatten(-1, (heads + 2 * groups, dim)).transpose(1, 2)
            q, k, v = h.split((heads, groups, groups), 1)
            o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, mask, enable_gqa=True)
            x = x + F.linear(
                o.transpose(1, 2).flatten(2), w[f"{at}self_attn.o_proj.weight"], w.get(f"{at}self_attn.o_proj.bias")
            )
            h = F.rms_norm(x, x.shape[-1:], w[f"{at}post_attention_layernorm.weight"], eps)
            gate, up = F.linear(h, w[f"{at}mlp.gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w[f"{at}mlp.down_proj.weight"])
        return F.rms_norm(x, x.shape[-1:], w["model.norm.weight"], eps).flatten(0, 1)

    tokens, arrays = read_batches(data)
    batches = [
        {n: torch.from_numpy(a.astype(np.int64) if a.dtype == np.int32 else a) for n, a in b.items()} for b in arrays
    ]
    count = iter(range(10**9))
    head = w["lm_head.weight"] if "lm_head.weight" in w else w["model.embed_tokens.weight"]

    def step() -> float:
        i = next(count) % len(batches)
        b = batches[i]
        targets = torch.cat((b["labels"][:, None], b["teacher_ids"]), 1)
        states = hidden(*(b[name] for name in ROWS_OF))[b["positions"]]
        logq = F.log_softmax(F.linear(states, head), -1).gather(1, targets)
        teacher, weights = b["teacher_logprobs"], b["weights"]
        logp = teacher - teacher.logsumexp(-1, keepdim=True)
        kd = (logp.exp() * (logp - logq[:, 1:])).sum(-1)
        loss = ((1 - KD) * -logq[:, 0] * weights[:, 0] + KD * kd * weights[:, 1]).sum() / tokens[i]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    loop(step, tokens, steps, memory("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "assets/mini/student")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--lengths", choices=("mini", "chat"), default="mini", help="of samples; chat: 90 + 110 tokens")
    parser.add_argument("--rows", type=int, default=4, help=f"rows of {ROW} a micro-batch, which is a step")
    parser.add_argument("--batches", type=int, default=8, help="micro-batches, which come in turn")
    parser.add_argument("--chunk-rows", type=int, default=1024, help="train.vocab_chunk_rows")
    parser.add_argument("--side", choices=("mindspore", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return {"mindspore": mindspore_side, "torch": torch_side}[args.side](args.model, args.data, args.steps)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "batches.npz"
        write_batches(args.model, data, args.lengths, args.rows, args.batches, args.chunk_rows)
        common = (args.model, "--data", data, "--steps", args.steps, "--side")
        sides = {
            "mindspore": Side(interpreter("mindspore"), __file__, *common, "mindspore"),
            "torch": Side(interpreter("rollout"), __file__, *common, "torch"),
        }
        losses = {name: np.array(side.ask("losses")) for name, side in sides.items()}
        seconds = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, side in sides.items():
                seconds[name].append(side.ask("round"))
        per_round = {kind: np.load(data)[kind].mean() * args.steps for kind in ("tokens", "row_tokens")}
        held = {name: side.ask("memory") for name, side in sides.items()}
        for side in sides.values():
            side.close()
    ours, theirs = (np.array(seconds[n]) for n in sides)
    ratios = np.median(theirs / ours, 0)
    rates = {
        f"{name}_{kind}_per_{unit}": round(per_round[kind] / np.median(value[:, i]))
        for name, value in (("mindspore", ours), ("torch", theirs))
        for kind, unit, i in (("tokens", "s", 0), ("row_tokens", "cpu_s", 1))
    }
    print(
        json.dumps(
            {
                "benchmark": "train_vs_torch",
                "model": args.model.name,
                "rows": f"{args.rows} x {ROW}",
                **rates,
                "tokens": "response tokens; row_tokens: with prompts",
                "ratio": round(ratios[0], 3),
                "cpu_ratio": round(ratios[1], 3),
                "best_ratio": round(float(theirs[:, 0].min() / ours[:, 0].min()), 3),
                **{f"{name}_start_gb": round(values[0], 2) for name, values in held.items()},
                **{f"{name}_peak_gb": round(values[1], 2) for name, values in held.items()},
                "difference": float(np.abs(losses["mindspore"] / losses["torch"] - 1).max()),
                "losses": [round(float(x), 5) for x in losses["torch"][[0, -1]]],
                "rounds": args.rounds,
                "machine": platform.machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
