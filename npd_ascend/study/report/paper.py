"""What the paper (arXiv:2605.05940) reports and claims, group by group, to stand beside a study's own figures.

Averages (AVG) are over eleven benchmarks, openPangu 7B to 1B, unless said. Arm names are those of the study files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Measure = Literal["accuracy", "gain", "kl_st", "kl_ts", "exaccerr", "seconds"]
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
    """

    title: str
    tables: str = ""
    unit: str = ""
    paper: dict[str, str] = field(default_factory=dict)
    reference: str = "npd"
    claims: tuple[Claim, ...] = ()


def _all(better: str, worse: dict[str, str], measure: Measure = "accuracy") -> tuple[Claim, ...]:
    return tuple(Claim(better, w, text, measure) for w, text in worse.items())


_T1 = "Table 1 (GSM8K, 1.5B)"
_EXPOSED: tuple[Measure, ...] = ("kl_ts", "exaccerr")

_LADDER = (
    Claim("off_policy", "supkd", "Table 9: 61.63 > 58.79"),
    Claim("npd_f0", "off_policy", "Table 9: 62.78 > 61.63"),
    Claim("npd", "npd_f0", "Table 9: 64.37 > 62.78"),
)
_EXPOSURE = tuple(
    Claim("npd", off, "what on-policy data is for", m) for off in ("sft", "supkd", "seqkd") for m in _EXPOSED
)


def _nearer(better: str, *worse: str) -> tuple[Claim, ...]:
    return tuple(Claim(better, w, "no figure; what on-policy data is for", "kl_ts") for w in worse)


GROUPS: dict[str, Group] = {
    "baselines": Group(
        "Is NPD better than the baselines?", "Tables 1, 2, 8 and 9", "GSM8K, 1.5B · AVG, 1B",
        {"sft": "– · 56.28", "supkd": "78.62 · 58.79", "seqkd": "82.41 · 59.55", "off_policy": "– · 61.63",
         "npd_f0": "– · 62.78", "gkd": "80.17 · –", "distillm": "81.15 · –", "distillm2": "81.27 · –",
         "npd": "82.87 · 64.37"},
        claims=(*_all("npd", {
            "sft": "Table 2: 64.37 > 56.28", "supkd": f"{_T1}: 82.87 > 78.62; Table 2: 64.37 > 58.79",
            "seqkd": f"{_T1}: 82.87 > 82.41; Table 2: 64.37 > 59.55", "gkd": f"{_T1}: 82.87 > 80.17",
            "distillm": f"{_T1}: 82.87 > 81.15", "distillm2": f"{_T1}: 82.87 > 81.27"}), *_LADDER, *_EXPOSURE,
            *_nearer("npd", "npd_f0", "off_policy", "no_teacher", "gkd", "on_policy"))),
    "quick": Group(
        "At a glance: is NPD nearer to its teacher?", "Tables 2 and 9",
        claims=(_LADDER[2], *_EXPOSURE[:4])),
    "more": Group("Does the order hold with twice the prompts?", "no counterpart", claims=_EXPOSURE[:2]),
    "rates": Group("Is it a matter of the learning rate?", "no counterpart", reference="npd_low"),
    "long": Group(
        "Is NPD better where the student comes near its teacher?", "Tables 2 and 9",
        claims=(*_all("npd", {"sft": "Table 2: 64.37 > 56.28", "supkd": "Table 2: 64.37 > 58.79",
                              "off_policy": "Table 9: 64.37 > 61.63"}), _LADDER[0], *_EXPOSURE[:4])),
    "filter": Group(
        "Which filter?", "Table 3, 13", "AVG",
        {"none": "61.63", "ppl_weighted": "61.69", "student_ifd": "62.60", "teacher_ifd": "62.69", "lower": "61.77",
         "upper": "61.76", "both": "62.78"}, "none",
        _all("both", {"none": "62.78 > 61.63", "ppl_weighted": "62.78 > 61.69", "student_ifd": "62.78 > 62.60",
                      "teacher_ifd": "62.78 > 62.69", "lower": "62.78 > 61.77", "upper": "62.78 > 61.76"})
        + _nearer("both", "none", "random", "student_ifd", "teacher_ifd")),
    "delta": Group("Which δ?", "Table 5", "AVG", {"delta_0.4": "62.86", "delta_0.8": "63.05", "delta_1.6": "62.60"},
                   "delta_0.8", _all("delta_0.8", {"delta_0.4": "63.05 > 62.86", "delta_1.6": "63.05 > 62.60"})),
    "sync": Group(
        "How often to update?", "Tables 4 and 10, Figures 3 to 5", "AVG (hours)",
        {"npd_f0": "62.78 (335)", "npd_f1": "64.37 (659)", "npd_f2": "64.17 (983)", "nofilter_f0": "61.63",
         "nofilter_f1": "63.26", "nofilter_f2": "63.43", "nofilter_f3": "63.12"}, "npd_f0",
        (Claim("npd_f1", "npd_f0", "Table 4: 64.37 > 62.78"), Claim("npd_f1", "npd_f2", "Table 4: 64.37 > 64.17"),
         Claim("nofilter_f1", "nofilter_f0", "Table 10: 63.26 > 61.63"),
         Claim("nofilter_f2", "nofilter_f3", "Table 10: 63.43 > 63.12"),
         Claim("npd_f0", "nofilter_f0", "Table 10: 62.78 > 61.63"),
         Claim("npd_f1", "nofilter_f1", "Table 10: 64.37 > 63.26"),
         *_nearer("npd_f1", "npd_f0"), *_nearer("npd_f3", "npd_f1"), *_nearer("npd_f9", "npd_f3"))),
    "lambda": Group(
        "Which λ?", "Table 11", "AVG, label-guided",
        {"lambda_0.5": "53.94", "lambda_0.6": "54.07", "lambda_0.7": "53.88", "lambda_0.8": "54.43",
         "lambda_0.9": "55.29", "lambda_1.0": "54.44"}, "lambda_0.9",
        _all("lambda_0.9", {"lambda_0.5": "55.29 > 53.94", "lambda_0.7": "55.29 > 53.88",
                            "lambda_1.0": "55.29 > 54.44"})),
    "k": Group("Which k?", "Table 12", "AVG, label-guided", {"k_5": "54.78", "k_10": "55.29", "k_20": "54.40"},
               "k_10", _all("k_10", {"k_5": "55.29 > 54.78", "k_20": "55.29 > 54.40"})),
    "norm": Group("How to normalise the k best?", "left open there", reference="teacher"),
    "multipath": Group(
        "Several answers a prompt?", "Table 18", "AVG (hours)",
        {"greedy": "61.63 (335)", "paths_3": "62.82 (1,000)", "paths_3_filter": "63.29 (998)"}, "greedy",
        (Claim("paths_3", "greedy", "62.82 > 61.63"), Claim("paths_3_filter", "paths_3", "63.29 > 62.82"))),
    "grpo": Group(
        "What does GRPO add, by where it starts?", "Tables 6 and 14", "AVG, start → end",
        {"from_sft": "56.28 → 59.86", "from_npd": "64.37 → 68.73", "from_unfiltered": "63.43 → 65.91"}, "from_npd",
        (Claim("from_npd", "from_sft", "Table 6: 68.73 > 59.86"),
         Claim("from_npd", "from_sft", "Table 6: +4.36 > +3.58", "gain"),
         Claim("from_npd", "from_unfiltered", "Table 14: 68.73 > 65.91"),
         Claim("from_npd", "from_unfiltered", "Table 14: +4.36 > +2.48", "gain"))),
    "policy": Group("Does GRPO need data of the present policy?", "no counterpart", reference="near_policy"),
    "taught": Group("Does a teacher teach better after GRPO?", "no counterpart", reference="teacher"),
    "seen": Group(
        "On prompts that the student knows by heart", "Table 2",
        claims=(*_all("npd", {"sft": "Table 2: 64.37 > 56.28", "supkd": "Table 2: 64.37 > 58.79",
                              "off_policy": "Table 9: 64.37 > 61.63"}), *_EXPOSURE[:4])),
    "imperfect": Group(
        "With a teacher that has seen imperfect walks", "Tables 2, 3, 9 and 13", reference="npd_upper",
        claims=(*_all("npd_both", {"sft": "Table 2", "supkd": "Table 2", "off_policy": "Table 9"}),
                Claim("npd_both", "npd_upper", "Table 3: 62.78 > 61.76"),
                *(Claim("npd_both", off, "what on-policy data is for", m) for off in ("sft", "supkd")
                  for m in _EXPOSED))),
    "chain": Group(
        "Where a mistake cannot be mended", "no counterpart",
        claims=(Claim("npd", "sft", "the paper's order"), Claim("npd", "supkd", "the paper's order"), *_EXPOSURE[:4])),
    "text": Group(
        "Real text", "no counterpart at this size", claims=_EXPOSURE[:4]),
    "speed": Group(
        "How fast?", "Table 1, Figures 3 and 4, Table 19", "hours",
        {"supkd": "1.17", "seqkd": "2.06", "gkd": "6.54", "distillm": "12.00", "distillm2": "12.00", "npd": "1.48"},
        claims=(*_all("npd", {"gkd": "6.54 / 1.48 = 4.4x", "distillm": "12.00 / 1.48 = 8.1x",
                              "distillm2": "12.00 / 1.48 = 8.1x", "on_policy": "no figure", "minillm": "no figure"},
                      "seconds"),
                Claim("on_policy_packed", "on_policy", "part of packing", "seconds"),
                Claim("npd", "on_policy_packed", "part of two passes instead of one a step", "seconds"),
                Claim("gkd_packed", "gkd", "part of packing", "seconds"),
                *_all("npd", {"sft": "Table 2: 64.37 > 56.28", "supkd": f"{_T1}: 82.87 > 78.62",
                              "gkd": f"{_T1}: 82.87 > 80.17", "distillm": f"{_T1}: 82.87 > 81.15",
                              "distillm2": f"{_T1}: 82.87 > 81.27", "on_policy": "no figure"}),
                *(Claim("npd", off, "what on-policy data is for", m) for off in ("sft", "supkd") for m in _EXPOSED))),
}  # fmt: skip
TARGET_SPEEDUP = 8.1
"""What the paper gives for NPD over DistiLLM and DistiLLM-2 (Table 1)."""
