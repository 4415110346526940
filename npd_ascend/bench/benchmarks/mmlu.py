"""MMLU: 57 subjects in English (Hendrycks et al., arXiv:2009.03300)."""

from npd_ascend.bench.exams import Exam
from npd_ascend.bench.registry import Source, register


@register("mmlu")
class MMLU(Exam):
    """As lm-eval's ``mmlu``, five shots; the accuracy over all questions."""

    title = "MMLU"
    sources = (
        Source(
            "mmlu",
            "data.tar of github.com/hendrycks/test",
            "MIT",
            "27ac46972a63c94a496cb9d24cce245af31d01bfe7c2b60ab8a0815263f75d19",
            "*/*.csv",
        ),
    )
    count = 14042
    columns = ("question", "A", "B", "C", "D", "answer")
    asks, marks, cue = "question", "answer", "Answer:"
    suffixes = ("_dev.csv", "_test.csv")

    def heading(self, subject: str) -> str:
        return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."
