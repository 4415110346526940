"""MATH-500 as a mean over five samples: the paper's 84.76 after GRPO is no multiple of 1/500, so it is such a mean."""

from npd_ascend.bench.benchmarks.math500 import MATH500
from npd_ascend.bench.registry import register


@register("math500_avg5")
class MATH500Avg5(MATH500):
    """Avg@5; temperature and top-p are not given by the paper."""

    title = "MATH-500 Avg@5"
    samples, temperature, top_p = 5, 0.6, 0.95
