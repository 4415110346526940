"""MiniLLM, arXiv:2306.08543."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from npd_ascend.arrays import Array
from npd_ascend.config.study import Settings
from npd_ascend.study.method import LiveMethod, Sample, Scored, Source, register
from npd_ascend.study.methods.gkd import GKD


@register("minillm")
class MiniLLM(LiveMethod):
    """Reverse KL by policy gradient: the next token's part exactly, KL(q ‖ p) at each position, the later tokens'
    part as A_t ∇ log q(y_t) with the length-normalised return (equations 4 to 7), plus CE on the data's answers.

    The answers are the student's alone and each is used for one step: the importance ratio is then 1 and the PPO
    clip never bites. Teacher-mixed sampling (eq. 6) would need both models in one decoding engine and is left out.
    """

    changes: ClassVar[Settings] = {**GKD.changes, "train.loss.kd_weight": 0.5, "train.loss.divergence": "reverse_kl"}

    samples_per_prompt = 2

    def samples(self, prompts: Sequence[int], source: Source) -> list[Sample]:
        own = source.student(prompts)
        return [*own, *source.reference(prompts)] if self.live.lm_weight else own

    def weigh(self, samples: Sequence[Sample], scored: Sequence[Scored]) -> list[Array]:
        live, total = self.live, sum(len(s.response) for s in samples)
        own = [i for i, s in enumerate(samples) if s.origin == "student"]
        of = max(1, sum(len(samples[i].response) for i in own))
        # λ = 1/2 halves both terms alike.
        out = [np.zeros((len(s.response), 2), np.float32) for s in samples]
        advantages = whitened([long_returns(self._rewards(samples[i], scored[i]), live.gamma) for i in own])
        for i, a in zip(own, advantages, strict=True):
            out[i][:, 0], out[i][:, 1] = a * (total / of), total / of
        for i, s in enumerate(samples):
            if s.origin != "student":
                out[i][:, 0] = live.lm_weight * total / max(1, total - of)
        return out

    def _rewards(self, sample: Sample, scored: Scored) -> Array:
        assert sample.logprobs is not None
        r = (scored.teacher.astype(np.float64) - sample.logprobs) * self.live.reward_scale
        clipped: Array = np.clip(r, -self.live.reward_clip, self.live.reward_clip)
        return clipped


def long_returns(rewards: Array, gamma: float) -> Array:
    """R_{t+1} / (T − t − 1): the discounted sum of the rewards after each token, over their number; 0 at the last."""
    out, later = np.zeros(len(rewards)), 0.0
    for t in range(len(rewards) - 2, -1, -1):
        later = rewards[t + 1] + gamma * later
        out[t] = later / (len(rewards) - 1 - t)
    return out


def whitened(parts: Sequence[Array]) -> list[Array]:
    """All values together brought to mean 0 and variance 1."""
    flat = np.concatenate(parts) if parts else np.empty(0)
    if not len(flat):
        return list(parts)
    return [(p - flat.mean()) / (flat.std() + 1e-8) for p in parts]
