"""GSM8K: word problems of primary school (Cobbe et al., arXiv:2110.14168)."""

from npd_ascend.bench.registry import Answered, Source, register


@register("gsm8k")
class GSM8K(Answered):
    """Zero shots, step by step; the last number counts."""

    title = "GSM8K"
    metric = "the same number"
    sources = (
        Source(
            "gsm8k/test.jsonl",
            "github.com/openai/grade-school-math",
            "MIT",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
        ),
    )
    count = 1319
    task = "gsm8k"
