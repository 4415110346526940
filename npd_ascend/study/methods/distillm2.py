"""DistiLLM-2, arXiv:2503.07067."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.schema import TrainConfig
from npd_ascend.config.study import LiveConfig, Settings
from npd_ascend.study.method import LiveMethod, Sample, Scored, Source, register
from npd_ascend.study.methods.gkd import GKD

LEAST_ALPHA = 0.01


@register("distillm2")
class DistiLLM2(LiveMethod):
    """Contrastive: skew KL(p ‖ αp + (1 − α)q) on the teacher's answer to a prompt, skew reverse KL(q ‖ (1 − α)p + αq)
    on the student's, in pairs. The student answers all prompts again at the start of each epoch.

    Curriculum of α per sample (section 3.3 and the official code): α = clip(1 − (1 − α0) m / d, 0.01, α0), where
    d is mean p − mean q of the sample's tokens (the other way round on the student's answers; mean p = exp of the
    mean log-prob) and m the mean of d over the first step.
    """

    changes: ClassVar[Settings] = {**GKD.changes, "train.loss.divergence": "skew_kl:0.1+skew_reverse_kl:0.1"}
    needs_student = True
    samples_per_prompt = 2

    def __init__(self, live: LiveConfig, train: TrainConfig):
        super().__init__(live, train)
        self._epoch = -1
        self._answers: dict[int, Sample] = {}
        self._first: dict[str, float] = {}

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        if source.epoch != self._epoch:
            self._epoch = source.epoch
            self._answers = {s.index: s for s in source.student(source.everything())}
        return [*source.teacher(prompts), *(self._answers[i] for i in prompts)]

    def weigh(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[Array]:
        """Each divergence is a mean over the tokens of its own kind; the two means are added."""
        total = sum(len(s.response) for s in samples)
        of = {o: max(1, sum(len(s.response) for s in samples if s.origin == o)) for o in ("teacher", "student")}
        out = []
        for s in samples:
            w = np.zeros((len(s.response), 3), np.float32)
            w[:, 1 if s.origin == "teacher" else 2] = total / of[s.origin] / 2
            out.append(w)
        return out

    def parameters(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[Array]:
        base, gaps = self.live.alpha, []
        for s, x in zip(samples, scored, strict=True):
            assert x.student is not None
            p, q = (float(np.exp(v.mean())) if len(v) else 0.0 for v in (x.teacher, x.student))
            gaps.append(p - q if s.origin == "teacher" else q - p)
        for origin in ("teacher", "student"):
            own = [g for g, s in zip(gaps, samples, strict=True) if s.origin == origin]
            if own and origin not in self._first:
                self._first[origin] = float(np.mean(own))
        return [
            np.full(2, skew(base, self._first[s.origin], g), np.float32) for g, s in zip(gaps, samples, strict=True)
        ]


def skew(base: float, first: float, gap: float) -> float:
    """α of one sample, inside [0.01, base]."""
    return float(np.clip(1 - (1 - base) * first / (gap + 1e-5), LEAST_ALPHA, base))
