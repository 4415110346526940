"""What the paper (arXiv:2605.05940) reports and claims, group by group, to stand beside a study's own figures.

Averages (AVG) are over eleven benchmarks, openPangu 7B to 1B, unless said. Arm names are those of the study files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Measure = Literal["accuracy", "kl_st", "kl_ts", "exaccerr", "seconds"]
LOWER_IS_BETTER: frozenset[Measure] = frozenset({"kl_st", "kl_ts", "exaccerr", "seconds"})


@dataclass(frozen=True)
class Claim:
    """``better`` beats ``worse``.

    Attributes:
        better, worse: arms.
        where: table or section of the paper, and what it gives for the two; or whose claim it is.
        measure: in what.
    """

    better: str
    worse: str
    where: str
    measure: Measure = "accuracy"


@dataclass(frozen=True)
class Group:
    """A comparison of the paper.

    Attributes:
        title: as a question.
        tables: of the paper.
        unit: of ``paper``.
        paper: arm -> what the paper gives.
        reference: arm that the others are compared with; the first of the study when it is missing.
        claims: what should hold.
        note: how the miniature differs.
    """

    title: str
    tables: str = ""
    unit: str = ""
    paper: dict[str, str] = field(default_factory=dict)
    reference: str = "npd"
    claims: tuple[Claim, ...] = ()
    note: str = ""


def _all(better: str, worse: dict[str, str], measure: Measure = "accuracy") -> tuple[Claim, ...]:
    return tuple(Claim(better, w, text, measure) for w, text in worse.items())


_T1 = "Table 1 (GSM8K, 1.5B)"
_OFF = ("sft", "supkd", "seqkd")
_ON = ("gkd", "distillm", "distillm2", "on_policy", "npd")

GROUPS: dict[str, Group] = {
    "baselines": Group(
        "Is NPD better than the baselines?", "Tables 1, 2 and 8", "GSM8K, 1.5B · AVG, 1B",
        {"sft": "– · 56.28", "supkd": "78.62 · 58.79", "seqkd": "82.41 · 59.55", "gkd": "80.17 · –",
         "distillm": "81.15 · –", "distillm2": "81.27 · –", "npd": "82.87 · 64.37"},
        claims=(*_all("npd", {
            "sft": "Table 2: 64.37 > 56.28", "supkd": f"{_T1}: 82.87 > 78.62; Table 2: 64.37 > 58.79",
            "seqkd": f"{_T1}: 82.87 > 82.41; Table 2: 64.37 > 59.55", "gkd": f"{_T1}: 82.87 > 80.17",
            "distillm": f"{_T1}: 82.87 > 81.15", "distillm2": f"{_T1}: 82.87 > 81.27"}),
            *(Claim("npd", off, "what on-policy data is for", m) for off in _OFF for m in ("kl_ts", "exaccerr"))),
        note="All arms start from the same student, see the same prompts and take the same number of optimiser "
             "steps or epochs; each synchronous method runs in its own best working setting."),
    "filter": Group(
        "Which filter?", "Table 3", "AVG",
        {"none": "61.63", "ppl_weighted": "61.69", "student_ifd": "62.60", "teacher_ifd": "62.69", "lower": "61.77",
         "upper": "61.76", "delta": "62.78"}, "delta",
        _all("delta", {"none": "62.78 > 61.63", "ppl_weighted": "62.78 > 61.69", "student_ifd": "62.78 > 62.60",
                       "teacher_ifd": "62.78 > 62.69", "lower": "62.78 > 61.77", "upper": "62.78 > 61.76"})),
    "delta": Group("Which δ?", "Table 5", "AVG", {"low": "62.86", "middle": "63.05", "high": "62.60"}, "middle",
                   _all("middle", {"low": "63.05 > 62.86", "high": "63.05 > 62.60"})),
    "sync": Group(
        "How often to update?", "Tables 4 and 10", "AVG (hours)",
        {"f0": "62.78 (335)", "f1": "64.37 (659)", "f2": "64.17 (983)", "f0-nofilter": "61.63", "f1-nofilter": "63.26",
         "f2-nofilter": "63.43", "f3-nofilter": "63.12"}, "f0",
        (Claim("f1", "f0", "Table 4: 64.37 > 62.78"), Claim("f1", "f2", "Table 4: 64.37 > 64.17"),
         Claim("f1-nofilter", "f0-nofilter", "Table 10: 63.26 > 61.63"),
         Claim("f1", "f1-nofilter", "Table 10: 64.37 > 63.26"))),
    "ladder": Group(
        "What does each part bring?", "Table 9", "AVG",
        {"supkd": "58.79", "rollouts": "61.63", "filter": "62.78", "update": "64.37"}, "supkd",
        (Claim("rollouts", "supkd", "+2.84"), Claim("filter", "rollouts", "+1.15"),
         Claim("update", "filter", "+1.59"))),
    "lambda": Group(
        "Which λ?", "Table 11", "AVG, label-guided",
        {"0.5": "53.94", "0.6": "54.07", "0.7": "53.88", "0.8": "54.43", "0.9": "55.29", "1.0": "54.44"}, "0.9",
        _all("0.9", {"0.5": "55.29 > 53.94", "0.7": "55.29 > 53.88", "1.0": "55.29 > 54.44"})),
    "k": Group("Which k?", "Table 12", "AVG, label-guided", {"5": "54.78", "10": "55.29", "15": "54.24", "20": "54.40"},
               "10", _all("10", {"5": "55.29 > 54.78", "15": "55.29 > 54.24", "20": "55.29 > 54.40"})),
    "norm": Group("How to normalise the k best?", "not in the paper, which leaves it open", reference="teacher"),
    "paths": Group(
        "Several answers a prompt?", "Table 18", "AVG (hours)",
        {"1": "61.63 (335)", "3": "62.82 (1,000)", "3-filter": "63.29 (998)"}, "1",
        (Claim("3", "1", "62.82 > 61.63"), Claim("3-filter", "3", "63.29 > 62.82"))),
    "lag": Group(
        "How far does the student leave its generator behind?", "Figure 5", "KL(current‖generator), at the end",
        {"off_policy": "0.30", "npd-nofilter": "0.12", "npd": "< 0.10", "npd-f0": "–"},
        note="The paper trains at a learning rate of 1e-5; a student of 0.6M parameters learns nothing at that rate, "
             "and at one that it learns at, it leaves its snapshot sooner."),
    "speed": Group(
        "How fast?", "Table 1, Figures 3 and 4, Table 19", "hours",
        {"supkd": "1.17", "seqkd": "2.06", "gkd": "6.54", "distillm": "12.00", "distillm2": "12.00", "npd": "1.48"},
        claims=_all("npd", {"gkd": "6.54 / 1.48 = 4.4x", "distillm": "12.00 / 1.48 = 8.1x",
                            "distillm2": "12.00 / 1.48 = 8.1x", "on_policy": "-"}, "seconds")),
}
TARGET_SPEEDUP = 8.1
"""What the paper gives for NPD over DistiLLM and DistiLLM-2 (Table 1)."""
SYNCHRONOUS = ("gkd", "distillm", "distillm2", "on_policy", "minillm")
