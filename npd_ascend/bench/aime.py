"""What AIME 2024 and 2025 share."""

from npd_ascend.bench.registry import Answered


class AIME(Answered):
    """Zero shots, step by step; the mean over 16 samples, which the paper's figures fit (and openPangu's cards say)."""

    metric = "math-verify"
    count = 30
    proven = False
    task = "math"
    max_new_tokens = 32768
    samples, temperature, top_p = 16, 0.6, 0.95
