"""The top-k store: bytes a token, speed, and what the rounding does to the loss.

    python benchmarks/store.py [--tokens 400000] [--repeats 3]

Annotations are synthetic (V = 153,376, k = 10), of two kinds. "peaked" is a teacher as language models are on text:
70 % of the tokens have a top-1 probability above 0.9, ids follow Zipf's law (12.2 bits an id) under a random numbering
of the vocabulary. "random ids" has the same probabilities and uniform ids (17.2 bits): no code can make those shorter.
Samples are short (30 to 60 tokens) or long (log-normal, median 346). "limit" is the entropy of the columns for
themselves, with the true frequencies known for nothing.

The error of the loss is that of forward KL (teacher's mass renormalised over the k, as in training) against a
student that is the teacher plus noise, stored minus exact, in nats a token, for each precision.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
import time
from pathlib import Path

import numpy as np

from npd_ascend.store.dataset import Dataset
from npd_ascend.store.topk_codec import TopK, TopKFormat
from npd_ascend.store.topk_shard import TopKReader, write_topk

VOCAB, K, SHARD = 153_376, 10, 2048


def annotation(rng: np.random.Generator, tokens: int, ids: str = "peaked") -> TopK:
    """A teacher's top-k of so many tokens."""
    sure = rng.random(tokens) < 0.7
    rest = np.where(sure, 10 ** rng.uniform(-6, -1, tokens), rng.uniform(0.1, 0.8, tokens))  # 1 - p(top-1)
    inside = rng.beta(8, 1, tokens) * rest  # what the other k - 1 hold of it
    share = np.sort(rng.exponential(1, (tokens, K - 1)) * np.arange(1, K) ** -1.5, 1)[:, ::-1]
    p = np.concatenate([(1 - rest)[:, None], share / share.sum(1, keepdims=True) * inside[:, None]], 1)
    p = np.sort(p, 1)[:, ::-1]
    tail = np.maximum(1 - p.sum(1), 1e-9)
    entropy = -(p * np.log(p)).sum(1) - tail * np.log(tail / 2000)
    logprobs = np.log(p)
    place = np.minimum((rng.random(tokens)[:, None] > p.cumsum(1)).sum(1), K)
    sampled = np.where(place < K, logprobs[np.arange(tokens), np.minimum(place, K - 1)], np.log(tail) - 5)
    if ids == "peaked":
        zipf = np.cumsum(1 / np.arange(1, VOCAB + 1))
        name = np.random.default_rng(1).permutation(VOCAB)
        chosen = name[np.searchsorted(zipf, rng.random((tokens, K)) * zipf[-1])]
    else:
        chosen = rng.integers(0, VOCAB, (tokens, K))
    f = np.float32
    return TopK(
        chosen.astype(np.int32),
        logprobs.astype(f),
        (22 + 3 * rng.standard_normal(tokens)).astype(f),
        sampled.astype(f),
        entropy.astype(f),
    )


def sample_lengths(rng: np.random.Generator, tokens: int, kind: str) -> np.ndarray:
    """Tokens of samples that together have about so many."""
    if kind == "short":
        return rng.integers(30, 61, tokens // 45)
    return np.clip(346 * np.exp(0.9 * rng.standard_normal(tokens // 500)), 1, 16384).astype(np.int64)


def split(topk: TopK, lengths: np.ndarray) -> list[TopK]:
    ends = np.cumsum(lengths)
    return [topk[a:b] for a, b in zip(ends - lengths, ends, strict=True)]


def write(folder: Path, form: TopKFormat, samples: list[TopK]) -> Dataset:
    dataset = Dataset(folder, "topk", "benchmark")
    shards = -(-len(samples) // SHARD)
    for s in range(shards):
        write_topk(dataset, s, form, samples[s * SHARD : (s + 1) * SHARD])
    dataset.finish(shards)
    return dataset


def column_entropy(form: TopKFormat, symbols: np.ndarray, ids: str) -> float:
    """Bytes a token that coding each column for itself cannot go below."""
    frequency = 1 / np.arange(1, VOCAB + 1)
    frequency /= frequency.sum()
    an_id = -(frequency * np.log2(frequency)).sum() if ids == "peaked" else np.log2(VOCAB)
    bits = an_id * form.k
    for column in symbols[:, form.k :].T:
        p = np.unique(column, return_counts=True)[1] / len(column)
        bits += -(p * np.log2(p)).sum()
    return bits / 8


def loss_error(rng: np.random.Generator, exact: TopK, value_bits: int) -> tuple[float, float, float]:
    """Bias, root mean square and largest error of the KL of a token, and the mean KL itself in front."""
    form = TopKFormat(K, VOCAB, value_bits)
    stored = form.values(form.symbols(exact)).logprobs.astype(np.float64)
    true = exact.logprobs.astype(np.float64)
    student = true + rng.normal(0, 0.5, true.shape)
    student -= np.log(np.exp(student).sum(1, keepdims=True) + np.maximum(1 - np.exp(true).sum(1, keepdims=True), 1e-9))

    def kl(teacher: np.ndarray) -> np.ndarray:
        p = teacher - np.log(np.exp(teacher).sum(1, keepdims=True))
        return (np.exp(p) * (p - student)).sum(1)

    error = kl(stored) - kl(true)
    return float(kl(true).mean()), float(error.mean()), float(np.sqrt((error**2).mean())), float(np.abs(error).max())


def best(function, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    form = TopKFormat(K, VOCAB)
    print(f"V = {VOCAB:,}, k = {K}, {form.value_bits}-bit values, {args.tokens:,} tokens, best of {args.repeats}")
    print(
        "| ids, samples | bytes a token | limit | planned | lzma of the same symbols | write, tokens/s (MB/s) "
        "| read, tokens/s (MB/s) | read for training, tokens/s |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for ids in ("peaked", "random"):
            for kind in ("long", "short"):
                rng = np.random.default_rng(0)
                lengths = sample_lengths(rng, args.tokens, kind)
                whole = annotation(rng, int(lengths.sum()), ids)
                samples, tokens = split(whole, lengths), len(whole)
                place = Path(folder) / f"{ids}-{kind}"
                writing = best(lambda: write(place, form, samples), args.repeats)  # noqa: B023
                size = sum(p.stat().st_size for p in place.glob("*.topk"))
                reader = TopKReader(Dataset.open(place, "topk"))
                parts = np.array_split(rng.permutation(len(lengths)), max(1, tokens // 16384))

                def read(extras: bool) -> None:
                    for part in parts:  # noqa: B023
                        reader.read_many(part, extras)  # noqa: B023

                reading, training = (best(lambda: read(e), args.repeats) for e in (True, False))  # noqa: B023
                symbols = form.symbols(whole)
                few = symbols[:50_000]
                peer = len(lzma.compress(few.T.tobytes(), preset=6)) / len(few)
                print(
                    f"| {ids}, {kind} | {size / tokens:.1f} | {column_entropy(form, symbols, ids):.1f} "
                    f"| {form.planned_bytes} | {peer:.1f} | {tokens / writing:,.0f} ({size / writing / 1e6:.0f}) "
                    f"| {tokens / reading:,.0f} ({size / reading / 1e6:.0f}) | {tokens / training:,.0f} |",
                    flush=True,
                )
    rng = np.random.default_rng(3)
    exact = annotation(rng, min(args.tokens, 100_000))
    print("\n| bits a value | mean KL | bias | root mean square | largest |\n|---|---|---|---|---|")
    for bits in (8, 9, 10, 11, 12, 16):
        mean, bias, rms, most = loss_error(np.random.default_rng(4), exact, bits)
        print(f"| {bits} | {mean:.4f} | {bias:+.1e} | {rms:.1e} | {most:.1e} |")


if __name__ == "__main__":
    main()
