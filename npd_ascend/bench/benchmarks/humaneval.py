"""HumanEval: functions to complete (Chen et al., arXiv:2107.03374)."""

from npd_ascend.bench.registry import Answered, Source, register


@register("humaneval")
class HumanEval(Answered):
    """pass@1 of a greedy answer; programs run in the sandbox."""

    title = "HumanEval"
    metric = "pass@1"
    sources = (
        Source(
            "humaneval/HumanEval.jsonl.gz",
            "github.com/openai/human-eval",
            "MIT",
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        ),
    )
    count = 164
    task = "humaneval"
