"""GKD, arXiv:2306.13649."""

from collections.abc import Sequence
from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import LiveMethod, Sample, Source, register
from npd_ascend.study.methods.on_policy import OnPolicy


@register("gkd")
class GKD(LiveMethod):
    """Generalised JSD over the whole vocabulary; a step is on the student's answers with probability λ_s, else on the
    data's, no gradient through sampling (algorithm 1; the draw is per step, as there and in TRL's trainer)."""

    changes: ClassVar[Settings] = {
        **OnPolicy.changes,
        "train.loss.kd_weight": 1.0,
        "train.loss.divergence": "jsd:0.5",
        "train.loss.topk_norm": "both",
    }

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        own = source.rng.random() < self.live.student_fraction
        return source.student(prompts) if own else source.reference(prompts)
