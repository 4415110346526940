"""Packing density, speed and balance on five length distributions, beside what trainers do today.

    python benchmarks/pack_density.py [--samples 20000] [--scale 1200000]

Densities are per cent of row positions that hold tokens. "next-fit" closes a row when the next sample does not fit
(concatenating data loaders), "BFD/1000" packs every thousand samples for themselves (map-style packers), "bound" is
the density of the fewest rows any packing could have. Imbalance is the share of attention time lost to the slowest
of 8 ranks in batches of 64 rows. Lengths are log-normal, cut at the capacity, with the mean and the next-fit density
of published measurements; "hard" is a normal around half the capacity, where rows hold pairs: BFD then needs no row
more than the best pairing, and what is missing at few samples is the luck of the draw, not of the packing.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np

from npd_ascend.rows.balance import balanced_order, imbalance
from npd_ascend.rows.bfd import best_fit_decreasing, lower_bound

GROUP, RANKS = 64, 8
# name, capacity, median, sigma of the logarithm
DISTRIBUTIONS = [
    ("instruct", 4096, 346, 0.9),
    ("instruct", 8192, 600, 1.0),
    ("reasoning", 16384, 3784, 0.9),
    ("reasoning", 32768, 5950, 0.9),
    ("hard", 8192, None, 512),
]


def lengths_of(n: int, capacity: int, median: float | None, sigma: float, seed: int = 0) -> np.ndarray:
    """[n] int64 token counts in 1..capacity."""
    noise = np.random.default_rng(seed).standard_normal(n)
    raw = capacity / 2 + sigma * noise if median is None else median * np.exp(sigma * noise)
    return np.clip(raw, 1, capacity).astype(np.int64)


def next_fit_rows(lengths: np.ndarray, capacity: int) -> int:
    rows, free = 1, capacity
    for length in lengths.tolist():
        if length > free:
            rows, free = rows + 1, capacity
        free -= length
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--scale", type=int, default=1_200_000, help="samples of the timed run")
    args = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, one core")
    print(
        f"| lengths, capacity | pad each | next-fit | BFD/1000 | BFD | bound | BFD at {args.scale:,} | seconds | "
        f"imbalance: shuffled | balanced, mean | worst batch | balancing, seconds |"
    )
    print("|---|" + "---|" * 11)
    for name, capacity, median, sigma in DISTRIBUTIONS:
        lengths = lengths_of(args.samples, capacity, median, sigma)
        total = lengths.sum()
        windows = sum(len(best_fit_decreasing(w, capacity)) for w in np.array_split(lengths, -(-len(lengths) // 1000)))
        rows = [
            len(lengths),
            next_fit_rows(lengths, capacity),
            windows,
            len(best_fit_decreasing(lengths, capacity)),
            lower_bound(lengths, capacity),
        ]
        many = lengths_of(args.scale, capacity, median, sigma, seed=1)
        start = time.perf_counter()
        bins = best_fit_decreasing(many, capacity)
        seconds = time.perf_counter() - start
        costs = bins.sums(many**2)
        start = time.perf_counter()
        order = balanced_order(costs, GROUP, 0)
        balancing = time.perf_counter() - start
        shuffled = imbalance(costs[np.random.default_rng(0).permutation(len(costs))], GROUP, RANKS)
        made = imbalance(costs[order], GROUP, RANKS)
        cells = [f"{100 * total / r / capacity:.2f}" for r in rows]
        cells += [
            f"{100 * many.sum() / len(bins) / capacity:.3f}",
            f"{seconds:.2f}",
            f"{shuffled.mean:.1%}",
            f"{made.mean:.3%}",
            f"{made.worst:.2%}",
            f"{balancing:.2f}",
        ]
        print(f"| {name}, {capacity:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
