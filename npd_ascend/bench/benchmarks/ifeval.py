"""IFEval: instructions that a program can verify (Zhou et al., arXiv:2311.07911)."""

from npd_ascend.bench.registry import Answered, Source, register


@register("ifeval")
class IFEval(Answered):
    """All instructions of a prompt are followed, strictly. All 541 prompts count: where a checker lacks its data, it is
    an error."""

    title = "IF-Eval"
    metric = "prompt-level, strict"
    sources = (
        Source(
            "ifeval/input_data.jsonl",
            "github.com/google-research/google-research (instruction_following_eval)",
            "Apache-2.0",
            "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
        ),
    )
    count = 541
    task = "ifeval"
    max_new_tokens = 1280
