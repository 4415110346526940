"""Policy-gradient terms as a user's package may have them; arguments name what they read."""


def reinforce(label_logprobs, advantages):
    """−A log π."""
    return -advantages * label_logprobs


def clipped(label_logprobs, rollout_logprobs, advantages):
    """−min(ρ A, clip(ρ, 1 ± 0.2) A), ρ = π / μ (PPO, arXiv:1707.06347 eq. 7)."""
    ratio = (label_logprobs - rollout_logprobs).exp()
    return -(ratio * advantages).minimum(ratio.clip(0.8, 1.2) * advantages)
