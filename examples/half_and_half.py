"""A method for a study: in each step the student answers half of the prompts, the data the other half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from npd_ascend.config.study import Settings
from npd_ascend.study.method import Sample, Source, register
from npd_ascend.study.methods.gkd import GKD


@register("half_and_half")
class HalfAndHalf(GKD):
    """GKD mixes over steps, this within them; divergence and weights are GKD's."""

    changes: ClassVar[Settings] = {**GKD.changes, "train.loss.divergence": "jsd:0.1"}

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        half = len(prompts) // 2
        return [*source.student(prompts[:half]), *source.reference(prompts[half:])]
