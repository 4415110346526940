"""How sure one may be of a measured accuracy."""

from __future__ import annotations

import math

import numpy as np

from npd_ascend.arrays import Array

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); stays inside [0, 1] and honest at 0 and at n.

    Args:
        successes: 0..n.
        n: trials; at least 1.
        z: standard normal quantile; 1.96 gives 95 %.
    """
    p, zz = successes / n, z * z / n
    centre = (p + zz / 2) / (1 + zz)
    half = z * math.sqrt(p * (1 - p) / n + zz / (4 * n)) / (1 + zz)
    return (centre - half if successes else 0.0), (centre + half if successes < n else 1.0)


def pass_at_k(n: Array, correct: Array, k: int) -> Array:
    """Chance that at least one of k answers, drawn from n without return, is right: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1), computed as a product.

    Args:
        n: int [P], answers of each prompt, at least k.
        correct: int [P], right ones among them.

    Returns:
        float64 [P].
    """
    n, correct = np.asarray(n, np.float64), np.asarray(correct, np.float64)
    i = np.arange(k)
    # C(n-c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i)
    factors = np.clip(n[:, None] - correct[:, None] - i, 0, None) / (n[:, None] - i)
    found: Array = 1.0 - factors.prod(1)
    return found


def bootstrap(values: Array, seed: int = 0, draws: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean of ``values`` (float [P], one a prompt), prompts drawn with return.

    Deterministic for a seed; draws are taken in blocks, so that memory stays flat.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // len(values))
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (min(block, draws - at), len(values)))].mean(1)
            for at in range(0, draws, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
