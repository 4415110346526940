"""MATH-500: competition problems (Hendrycks et al., arXiv:2103.03874; split by Lightman et al., arXiv:2305.20050)."""

from npd_ascend.bench.registry import Answered, Source, register


@register("math500")
class MATH500(Answered):
    """Zero shots, step by step, greedy; math-verify compares the boxed values."""

    title = "MATH-500"
    metric = "math-verify"
    sources = (
        Source(
            "math500/test.jsonl",
            "github.com/openai/prm800k (math_splits/test.jsonl)",
            "MIT",
            "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
        ),
    )
    count = 500
    task = "math"
    max_new_tokens = 2048
