"""DistiLLM, arXiv:2402.03898."""

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from npd_ascend.config.schema import TrainConfig
from npd_ascend.config.study import LiveConfig, Settings
from npd_ascend.study.method import LiveMethod, Sample, Source, register
from npd_ascend.study.methods.gkd import GKD


@register("distillm")
class DistiLLM(LiveMethod):
    """Skew KL, KL(p ‖ αp + (1 − α)q) with α = 0.1, and the adaptive use of the student's answers (section 3.2).

    A step is on the student's answers with probability φ: freshly made ones with probability φ (1 − t/T), else drawn
    from a replay buffer of them; the rest of the steps is on the data's answers. φ starts at 0 and rises by 0.1 when
    the held-out loss has risen by 0.1 since it was last looked at, once an epoch (the official code's defaults).
    """

    changes: ClassVar[Settings] = {**GKD.changes, "train.loss.divergence": "skew_kl:0.1"}

    def __init__(self, live: LiveConfig, train: TrainConfig):
        super().__init__(live, train)
        self.phi = live.phi_start
        self.buffer: deque[Sample] = deque(maxlen=live.replay_capacity)
        self._loss: float | None = None
        self._epoch = -1

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        if source.epoch != self._epoch:
            self._epoch = source.epoch
            self._adapt(source.held_out_loss())
        draw = source.rng.random()
        if draw < self.phi * (1 - source.progress):
            fresh = source.student(prompts)
            self.buffer.extend(fresh)
            return fresh
        if draw < self.phi and len(self.buffer) >= len(prompts):
            return [self.buffer[i] for i in source.rng.choice(len(self.buffer), len(prompts), replace=False)]
        return source.reference(prompts)

    def _adapt(self, loss: float) -> None:
        if self._loss is None or loss >= self._loss + self.live.phi_tolerance:
            if self._loss is not None:
                self.phi = min(1.0, self.phi + self.live.phi_step)
            self._loss = loss
